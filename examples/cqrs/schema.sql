-- The write side: four normalised tables.  shop_owner has them and the read
-- models, shop_app writes orders, shop_web reads what it is shown.
\set ON_ERROR_STOP 1
CREATE EXTENSION IF NOT EXISTS saga;
CREATE ROLE shop_owner LOGIN;
CREATE ROLE shop_app LOGIN;
CREATE ROLE shop_web LOGIN;
GRANT saga_user TO shop_owner, shop_app, shop_web;
CREATE SCHEMA shop AUTHORIZATION shop_owner;
GRANT USAGE ON SCHEMA shop TO shop_app, shop_web;
SET SESSION AUTHORIZATION shop_owner;
SET search_path = shop;

CREATE TABLE customer (
    id    integer PRIMARY KEY,
    name  text NOT NULL,
    email text NOT NULL,
    state text NOT NULL);
CREATE TABLE product (
    id    integer PRIMARY KEY,
    name  text NOT NULL,
    price numeric(10,2) NOT NULL);
CREATE TABLE orders (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id integer NOT NULL REFERENCES customer,
    ordered_at  timestamp NOT NULL DEFAULT localtimestamp);
CREATE TABLE order_item (
    order_id   bigint NOT NULL REFERENCES orders,
    product_id integer NOT NULL REFERENCES product,
    quantity   integer NOT NULL CHECK (quantity > 0),
    price      numeric(10,2) NOT NULL,
    PRIMARY KEY (order_id, product_id));
CREATE INDEX ON orders (customer_id);
CREATE INDEX ON order_item (product_id);

-- Old rows of updates and deletes in the WAL: the read models need them.
ALTER TABLE customer REPLICA IDENTITY FULL;
ALTER TABLE product REPLICA IDENTITY FULL;
ALTER TABLE orders REPLICA IDENTITY FULL;
ALTER TABLE order_item REPLICA IDENTITY FULL;

CREATE FUNCTION place_order(customer integer, products integer[], quantities integer[])
RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = shop, pg_temp AS $$
WITH o AS (INSERT INTO orders (customer_id) VALUES (customer) RETURNING id),
     i AS (INSERT INTO order_item
           SELECT o.id, p.id, sum(w.quantity), p.price
             FROM o, unnest(products, quantities) AS w(product, quantity) JOIN product p ON p.id = w.product
            GROUP BY o.id, p.id, p.price)
SELECT id FROM o
$$;
CREATE FUNCTION cancel_order("order" bigint)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = shop, pg_temp AS $$
DELETE FROM order_item WHERE order_id = "order";
DELETE FROM orders WHERE id = "order";
$$;
REVOKE ALL ON FUNCTION place_order, cancel_order FROM PUBLIC;
GRANT EXECUTE ON FUNCTION place_order, cancel_order TO shop_app;
GRANT UPDATE (email) ON customer TO shop_app;
GRANT SELECT (id) ON customer TO shop_app;

-- Rows to begin with: orders of the last twelve months.
INSERT INTO customer
SELECT i, 'Customer ' || i, 'customer' || i || '@example.com',
       ('{California,Ohio,Oregon,Texas,Utah,Vermont,Virginia,Wyoming}'::text[])[1 + i % 8]
  FROM generate_series(1, 2000) i;
INSERT INTO product
SELECT i, 'Product ' || i, 5 + i % 40 + 0.5 FROM generate_series(1, 200) i;
INSERT INTO orders (customer_id, ordered_at)
SELECT 1 + i * 7 % 2000, localtimestamp - i % 365 * interval '1 day' - i % 24 * interval '1 hour'
  FROM generate_series(1, :orders) i;
INSERT INTO order_item
SELECT o, 1 + (o * 13 + n * 17) % 200, 1 + (o + n) % 5, 5 + (o * 13 + n * 17) % 200 % 40 + 0.5
  FROM generate_series(1, :orders) o, generate_series(1, 3) n;
ANALYZE customer, product, orders, order_item;
