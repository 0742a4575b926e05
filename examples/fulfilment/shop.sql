-- The shop: the orders, the participants, and the saga over them.
\set ON_ERROR_STOP 1
CREATE ROLE shop_owner NOLOGIN;
GRANT saga_user TO shop_owner;
CREATE SCHEMA shop AUTHORIZATION shop_owner;

CREATE SERVER bank FOREIGN DATA WRAPPER saga_postgres
  OPTIONS (host '127.0.0.1', port :'bank_port', dbname 'bank');
CREATE SERVER warehouse FOREIGN DATA WRAPPER saga_http
  OPTIONS (url :'warehouse', allow_private 'true');
CREATE SERVER mailer FOREIGN DATA WRAPPER saga_http
  OPTIONS (url :'mailer', allow_private 'true');
GRANT USAGE ON FOREIGN SERVER bank, warehouse, mailer TO shop_owner;
CREATE USER MAPPING FOR shop_owner SERVER bank OPTIONS (user 'bank_saga', password 'bank');
CREATE USER MAPPING FOR shop_owner SERVER warehouse;
CREATE USER MAPPING FOR shop_owner SERVER mailer;

SET SESSION AUTHORIZATION shop_owner;
CREATE TABLE shop.orders (
  id        text PRIMARY KEY,
  sku       text NOT NULL,
  quantity  integer NOT NULL,
  total     numeric(12,2) NOT NULL,
  status    text NOT NULL DEFAULT 'placed',
  saga_id   uuid,
  placed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE shop.event (
  name     text NOT NULL,
  order_id text NOT NULL,
  at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

SELECT saga.prepare_participant('bank') \g /dev/null
SELECT saga.define('order_fulfilment',
  input => 'order_id text, card text, sku text, quantity integer, total numeric(12,2), email text',
  steps => ARRAY[
    saga.parallel(
      saga.step('payment', server => 'bank',
        action       => 'SELECT bank.take(:order_id, :card, :total)',
        compensation => 'SELECT bank.refund(:order_id)'),
      saga.step('stock', server => 'warehouse',
        action       => 'PUT /reservations/:order_id {"sku": :sku, "quantity": :quantity}',
        compensation => 'DELETE /reservations/:order_id')),
    saga.step('fulfilled', pivot => true,
      action => 'INSERT INTO shop.event (name, order_id) VALUES (''OrderFulfilled'', :order_id)'),
    saga.step('mail', server => 'mailer', on_failure => 'continue',
      action => 'POST /emails {"to": :email, "order": :order_id, "text": "Your order :{order_id} is on its way, receipt :{payment}."}')],
  on_completed   => 'UPDATE shop.orders SET status = ''completed'' WHERE id = :order_id',
  on_compensated => 'UPDATE shop.orders SET status = ''cancelled'' WHERE id = :order_id');

-- Every tenth card is stolen, every seventh wants more chairs than there are.
CREATE FUNCTION shop.place_order(round text, n integer) RETURNS uuid
LANGUAGE plpgsql SET search_path = shop, pg_temp AS $$
DECLARE
  o orders;
BEGIN
  INSERT INTO orders (id, sku, quantity, total)
  VALUES (round || '/' || n, CASE WHEN n % 7 = 0 THEN 'chair' ELSE 'lamp' END, CASE WHEN n % 7 = 0 THEN 50 ELSE 1 END, n * 1.5)
  RETURNING * INTO o;
  o.saga_id := saga.start('order_fulfilment', key => o.id, input => jsonb_build_object(
    'order_id', o.id, 'sku', o.sku, 'quantity', o.quantity, 'total', o.total,
    'card', CASE WHEN n % 10 = 0 THEN 'stolen' ELSE 'good' END, 'email', 'someone@example.org'));
  UPDATE orders SET saga_id = o.saga_id WHERE id = o.id;
  RETURN o.saga_id;
END
$$;
