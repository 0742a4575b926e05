-- Fill the tables of schema.sql.  A generator of our own: keys, value lists
-- and the shapes of distributions are those that the benchmark describes, the
-- values come from a hash, so that every load is the same.  Rows that the
-- queries look for are more frequent than chance would make them, so that none
-- of the 22 is empty at a small scale.
SET search_path = tpch;

-- Number n of stream "salt", from lo to hi, always the same.
CREATE FUNCTION r(n bigint, salt integer, lo bigint, hi bigint) RETURNS integer
LANGUAGE sql IMMUTABLE AS
'SELECT (lo + (hashint8extended(n, salt) & 1152921504606846975) % (hi - lo + 1))::integer';

CREATE FUNCTION pick(n bigint, salt integer, list text[]) RETURNS text
LANGUAGE sql IMMUTABLE AS
'SELECT list[1 + (hashint8extended(n, salt) & 1152921504606846975) % cardinality(list)]';

CREATE FUNCTION words(n bigint, salt integer, number integer) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
SELECT string_agg(pick(n * 31 + i, salt,
    '{carefully,quickly,final,ironic,packages,deposits,accounts,bold,sleep,haggle,pending,even}'), ' ' ORDER BY i)
  FROM generate_series(1, number) i
$$;

-- Which supplier is the i-th (0 to 3) of a part
CREATE FUNCTION supplier_of(part bigint, i bigint, suppliers bigint) RETURNS integer
LANGUAGE sql IMMUTABLE AS
'SELECT ((part + i * (suppliers / 4 + (part - 1) / suppliers)) % suppliers + 1)::integer';

CREATE PROCEDURE load(scale float8 DEFAULT 0.01) LANGUAGE plpgsql
SET search_path = tpch AS $load$
DECLARE
  suppliers bigint := greatest(10000 * scale, 10);
  parts bigint := greatest(200000 * scale, 40);
  customers bigint := greatest(150000 * scale, 30);
  number_of_orders bigint := greatest(1500000 * scale, 100);
BEGIN
  INSERT INTO region
  SELECT i - 1, name, words(i, 1, 5)
    FROM unnest('{AFRICA,AMERICA,ASIA,EUROPE,MIDDLE EAST}'::text[]) WITH ORDINALITY AS n(name, i);

  INSERT INTO nation
  SELECT i - 1, split_part(name, ':', 1), split_part(name, ':', 2)::integer, words(i, 2, 5)
    FROM unnest('{ALGERIA:0,ARGENTINA:1,BRAZIL:1,CANADA:1,EGYPT:4,ETHIOPIA:0,FRANCE:3,GERMANY:3,
      INDIA:2,INDONESIA:2,IRAN:4,IRAQ:4,JAPAN:2,JORDAN:4,KENYA:0,MOROCCO:0,MOZAMBIQUE:0,PERU:1,
      CHINA:2,ROMANIA:3,SAUDI ARABIA:4,VIETNAM:2,RUSSIA:3,UNITED KINGDOM:3,UNITED STATES:1}'::text[])
      WITH ORDINALITY AS n(name, i);

  INSERT INTO supplier
  SELECT i, 'Supplier#' || lpad(i::text, 9, '0'), words(i, 10, 2), nation,
         format('%s-%s-%s-%s', nation + 10, r(i, 12, 100, 999), r(i, 13, 100, 999), r(i, 14, 1000, 9999)),
         r(i, 15, -99999, 999999) / 100.0,
         CASE WHEN i % 12 = 5 THEN words(i, 16, 2) || ' Customer slow Complaints'
              ELSE words(i, 16, 5) END
    FROM (SELECT i, r(i, 11, 0, 24) AS nation FROM generate_series(1, suppliers) i) s;

  -- Every fourth part is one of those that the queries ask for.
  INSERT INTO part
  SELECT i,
         pick(i, 20, '{almond,azure,beige,blush,brown,chocolate,coral,cream,forest,green,ivory,lime,
           linen,magenta,navy,olive,peru,rose,sky,tomato}') || ' ' ||
         pick(i, 21, '{antique,blue,cornsilk,dim,frosted,green,honeydew,indian,khaki,lace,metallic,
           misty,pale,powder,puff,royal,sandy,steel,violet,wheat}') || ' ' || words(i, 22, 1),
         'Manufacturer#' || brand / 10, 'Brand#' || brand,
         CASE WHEN i % 20 = 0 THEN 'ECONOMY ANODIZED STEEL'
              ELSE pick(i, 24, '{STANDARD,SMALL,MEDIUM,LARGE,ECONOMY,PROMO}') || ' '
                   || pick(i, 25, '{ANODIZED,BURNISHED,PLATED,POLISHED,BRUSHED}') || ' '
                   || pick(i, 26, '{TIN,NICKEL,BRASS,STEEL,COPPER}') END,
         CASE WHEN i % 4 = 0 THEN r(i, 27, 1, 15) ELSE r(i, 27, 1, 50) END,
         CASE WHEN i % 4 > 0 THEN pick(i, 28, '{SM,LG,MED,JUMBO,WRAP}') || ' '
                                  || pick(i, 29, '{CASE,BOX,BAG,JAR,PKG,PACK,CAN,DRUM}')
              WHEN brand = 12 THEN pick(i, 28, '{SM CASE,SM BOX,SM PACK,SM PKG}')
              WHEN brand = 23 THEN pick(i, 28, '{MED BAG,MED BOX,MED PKG,MED PACK}')
              ELSE pick(i, 28, '{LG CASE,LG BOX,LG PACK,LG PKG}') END,
         (90000 + i / 10 % 20001 + 100 * (i % 1000)) / 100.0,
         words(i, 30, 2)
    FROM (SELECT i, CASE WHEN i % 4 = 0 THEN (ARRAY[12, 23, 34])[r(i, 23, 1, 3)]
                         ELSE 10 * r(i, 23, 1, 5) + r(i, 31, 1, 5) END AS brand
            FROM generate_series(1, parts) i) p;

  INSERT INTO partsupp
  SELECT p, supplier_of(p, i, suppliers), r(p * 4 + i, 40, 1, 9999),
         r(p * 4 + i, 41, 100, 100000) / 100.0, words(p * 4 + i, 42, 4)
    FROM generate_series(1, parts) p, generate_series(0, 3) i
      ON CONFLICT DO NOTHING;

  INSERT INTO customer
  SELECT i, 'Customer#' || lpad(i::text, 9, '0'), words(i, 50, 2), nation,
         format('%s-%s-%s-%s', nation + 10, r(i, 52, 100, 999), r(i, 53, 100, 999), r(i, 54, 1000, 9999)),
         r(i, 55, -99999, 999999) / 100.0,
         pick(i, 56, '{AUTOMOBILE,BUILDING,FURNITURE,MACHINERY,HOUSEHOLD}'), words(i, 57, 5)
    FROM (SELECT i, r(i, 51, 0, 24) AS nation FROM generate_series(1, customers) i) c;

  -- Every third customer has no orders; every 300th order is a large one.
  INSERT INTO lineitem
  SELECT o, part, supplier_of(part, r(n, 61, 0, 3), suppliers), line, quantity,
         quantity * (90000 + part / 10 % 20001 + 100 * (part % 1000)) / 100.0,
         r(n, 63, 0, 10) / 100.0, r(n, 64, 0, 8) / 100.0,
         CASE WHEN receipt <= '1995-06-17' THEN pick(n, 65, '{R,A}') ELSE 'N' END,
         CASE WHEN ship > '1995-06-17' THEN 'O' ELSE 'F' END,
         ship, ordered + r(n, 66, 30, 90), receipt,
         pick(n, 67, '{DELIVER IN PERSON,COLLECT COD,NONE,TAKE BACK RETURN}'),
         pick(n, 68, '{REG AIR,AIR,RAIL,SHIP,TRUCK,MAIL,FOB}'), words(n, 69, 3)
    FROM (SELECT *, ship + r(n, 70, 1, 30) AS receipt
            FROM (SELECT o, line, o * 8 + line AS n, ordered,
                         ordered + r(o * 8 + line, 71, 1, 121) AS ship,
                         r(o * 8 + line, 72, 1, parts) AS part,
                         CASE WHEN o % 300 = 7 THEN r(o * 8 + line, 73, 44, 50)
                              ELSE r(o * 8 + line, 73, 1, 50) END AS quantity
                    FROM (SELECT o, date '1992-01-01' + r(o, 81, 0, 2405) AS ordered
                            FROM generate_series(1, number_of_orders) o) o,
                         generate_series(1, CASE WHEN o % 300 = 7 THEN 7 ELSE r(o, 74, 1, 7) END) line) a) b;

  INSERT INTO orders
  SELECT l_orderkey,
         greatest(1, customer - CASE WHEN customer % 3 = 0 THEN 1 ELSE 0 END),
         status, price, date '1992-01-01' + r(l_orderkey, 81, 0, 2405),
         pick(l_orderkey, 82, '{1-URGENT,2-HIGH,3-MEDIUM,4-NOT SPECIFIED,5-LOW}'),
         'Clerk#' || lpad(r(l_orderkey, 83, 1, 1000)::text, 9, '0'), 0,
         CASE WHEN l_orderkey % 50 = 0 THEN 'special handling requests' ELSE words(l_orderkey, 84, 4) END
    FROM (SELECT l_orderkey, r(l_orderkey, 80, 1, customers) AS customer,
                 CASE WHEN count(DISTINCT l_linestatus) > 1 THEN 'P' ELSE min(l_linestatus) END AS status,
                 round(sum(l_extendedprice * (1 + l_tax) * (1 - l_discount)), 2) AS price
            FROM lineitem GROUP BY l_orderkey) l;
END
$load$;
