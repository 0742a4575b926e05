-- The inventory service.  "Out of stock" is what the table itself says: a
-- check constraint (SQLSTATE class 23) counts as declined.
\set ON_ERROR_STOP 1
CREATE ROLE inventory_owner NOLOGIN;
CREATE ROLE inventory_saga LOGIN PASSWORD :'password';
CREATE SCHEMA inventory AUTHORIZATION inventory_owner;
SET ROLE inventory_owner;

CREATE TABLE inventory.item (
  sku       text PRIMARY KEY,
  opening   integer NOT NULL,
  available integer NOT NULL CONSTRAINT in_stock CHECK (available >= 0)
);

CREATE TABLE inventory.reservation (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  order_id bigint NOT NULL,
  sku      text NOT NULL REFERENCES inventory.item,
  quantity integer NOT NULL CHECK (quantity > 0),
  status   text NOT NULL CHECK (status IN ('reserved', 'released'))
);
CREATE INDEX ON inventory.reservation (order_id);

CREATE TABLE inventory.effect (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  order_id bigint NOT NULL,
  kind     text NOT NULL CHECK (kind IN ('reserve', 'release')),
  quantity bigint,
  at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION inventory.keep_effect() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'effects are only ever added';
END
$$;
CREATE TRIGGER keep_effect BEFORE UPDATE OR DELETE OR TRUNCATE
  ON inventory.effect EXECUTE FUNCTION inventory.keep_effect();

CREATE FUNCTION inventory.reserve(order_id bigint, items jsonb) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = inventory, pg_temp AS $$
DECLARE
  line record;
  total bigint := 0;
BEGIN
  FOR line IN
    SELECT i.sku, i.quantity
      FROM jsonb_to_recordset($2) AS i(sku text, quantity integer)
     ORDER BY i.sku
  LOOP
    UPDATE item SET available = available - line.quantity
     WHERE sku = line.sku;
    INSERT INTO reservation (order_id, sku, quantity, status)
    VALUES ($1, line.sku, line.quantity, 'reserved');
    total := total + line.quantity;
  END LOOP;
  INSERT INTO effect (order_id, kind, quantity) VALUES ($1, 'reserve', total);
  RETURN total;
END
$$;

CREATE FUNCTION inventory.release(order_id bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = inventory, pg_temp AS $$
DECLARE
  line record;
  total bigint;
BEGIN
  FOR line IN
    UPDATE reservation r SET status = 'released'
     WHERE r.order_id = $1 AND r.status = 'reserved'
    RETURNING r.sku, r.quantity
  LOOP
    UPDATE item SET available = available + line.quantity
     WHERE sku = line.sku;
    total := coalesce(total, 0) + line.quantity;
  END LOOP;
  INSERT INTO effect (order_id, kind, quantity) VALUES ($1, 'release', total);
  RETURN total;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA inventory FROM PUBLIC;
GRANT USAGE ON SCHEMA inventory TO inventory_saga;
GRANT EXECUTE ON FUNCTION inventory.reserve, inventory.release
  TO inventory_saga;

-- Enough of everything, but for one thing that never comes in.
INSERT INTO inventory.item
SELECT 'item-' || n, 100000, 100000 FROM generate_series(0, 49) n
UNION ALL
VALUES ('unicorn', 0, 0);

RESET ROLE;
SELECT format('GRANT CREATE ON DATABASE %I TO inventory_saga',
              current_database()) \gexec
