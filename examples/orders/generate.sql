-- Orders number :first to :last, each in a transaction of its own, placed by
-- the web shop.  Of every twenty, two cannot be paid, two ask for what is out
-- of stock, two live where no courier goes, and one is barred.  Prints their ids.
\set ON_ERROR_STOP 1
SET SESSION AUTHORIZATION orders_app;
SELECT format('SELECT shop.place_order(%L, %L, %L)',
    CASE WHEN n % 10 = 1 THEN 'penniless-' || n % 50
         WHEN n % 20 = 9 THEN 'barred-' || n / 20 % 20
         ELSE 'customer-' || n % 200 END,
    CASE WHEN n % 10 = 7 THEN 'Atlantis'
         ELSE ('{Lisbon,Oslo,Utrecht,Vienna}'::text[])[1 + n % 4] END,
    jsonb_build_array(
      jsonb_build_object('sku', 'item-' || n % 50, 'quantity', 1 + n % 3,
                         'price', 10 + n % 7 + 0.25),
      jsonb_build_object('sku', CASE WHEN n % 10 = 4 THEN 'unicorn'
                                     ELSE 'item-' || n % 17 + 50 - 17 END,
                         'quantity', 1, 'price', 5)))
  FROM generate_series(:first::bigint, :last) n
\gexec
