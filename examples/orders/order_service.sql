-- The order service: the database where orders are placed, and where saga is
-- installed.  Placing an order and starting its saga is one transaction.
\set ON_ERROR_STOP 1
CREATE EXTENSION saga;

-- The owner of the tables and of the saga; the role of the web shop.
CREATE ROLE orders_owner LOGIN;
CREATE ROLE orders_app LOGIN;
GRANT saga_user TO orders_owner, orders_app;

CREATE SCHEMA shop AUTHORIZATION orders_owner;
SET ROLE orders_owner;

CREATE TABLE shop.orders (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  customer text NOT NULL,
  city     text NOT NULL,
  items    jsonb NOT NULL,
  total    numeric(12,2) NOT NULL,
  status   text NOT NULL DEFAULT 'placed'
           CHECK (status IN ('placed', 'accepted', 'confirmed', 'completed',
                             'withdrawn', 'cancelled')),
  courier  text,
  saga_id  uuid
);

CREATE TABLE shop.effect (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  order_id bigint NOT NULL,
  kind     text NOT NULL,
  at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Customers who get nothing any more.
CREATE TABLE shop.barred (customer text PRIMARY KEY);
INSERT INTO shop.barred SELECT 'barred-' || n FROM generate_series(0, 19) n;

CREATE FUNCTION shop.set_status(order_id bigint, status text) RETURNS void
BEGIN ATOMIC
  UPDATE shop.orders o SET status = $2 WHERE o.id = $1;
  INSERT INTO shop.effect (order_id, kind) VALUES ($1, $2);
END;

-- The last word, once everything is arranged.
CREATE FUNCTION shop.confirm(order_id bigint, courier text) RETURNS void
LANGUAGE plpgsql SET search_path = shop, pg_temp AS $$
BEGIN
  IF EXISTS (SELECT FROM orders o JOIN barred USING (customer)
              WHERE o.id = $1) THEN
    RAISE EXCEPTION 'this customer is barred' USING ERRCODE = 'SGB01';
  END IF;
  UPDATE orders o SET courier = $2 WHERE o.id = $1;
  PERFORM set_status($1, 'confirmed');
END
$$;

-- What the web shop calls.  If it rolls back, there is no order and no saga.
CREATE FUNCTION shop.place_order(customer text, city text, items jsonb)
RETURNS bigint
LANGUAGE plpgsql SET search_path = shop, pg_temp AS $$
DECLARE
  o orders%ROWTYPE;
BEGIN
  INSERT INTO orders (customer, city, items, total)
  SELECT $1, $2, $3, sum(i.quantity * i.price)
    FROM jsonb_to_recordset($3) AS i(quantity integer, price numeric)
  RETURNING * INTO o;
  UPDATE orders SET saga_id = saga.start('order_fulfilment',
      input => jsonb_build_object(
        'order_id', o.id, 'customer', o.customer, 'city', o.city,
        'total', o.total, 'items', o.items),
      key => 'order-' || o.id)
   WHERE id = o.id;
  RETURN o.id;
END
$$;

GRANT USAGE ON SCHEMA shop TO orders_app;
GRANT SELECT, INSERT, UPDATE ON shop.orders TO orders_app;
RESET ROLE;
