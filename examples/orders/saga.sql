-- How the order service reaches the others, and what a saga over them is.
\set ON_ERROR_STOP 1

-- An administrator says where the services are, and who may call them.
CREATE SERVER payments FOREIGN DATA WRAPPER saga_postgres
  OPTIONS (host '127.0.0.1', port :'payments_port', dbname :'payments_db',
           pool_size '8');
CREATE SERVER inventory FOREIGN DATA WRAPPER saga_postgres
  OPTIONS (host '127.0.0.1', port :'inventory_port', dbname :'inventory_db',
           pool_size '8');
CREATE SERVER deliveries FOREIGN DATA WRAPPER saga_postgres
  OPTIONS (host '127.0.0.1', port :'deliveries_port', dbname :'deliveries_db',
           pool_size '8');
GRANT USAGE ON FOREIGN SERVER payments, inventory, deliveries TO orders_owner;
CREATE USER MAPPING FOR orders_owner SERVER payments
  OPTIONS (user 'payments_saga', password :'password');
CREATE USER MAPPING FOR orders_owner SERVER inventory
  OPTIONS (user 'inventory_saga', password :'password');
CREATE USER MAPPING FOR orders_owner SERVER deliveries
  OPTIONS (user 'delivery_saga', password :'password');

-- The rest is done by the owner of the orders, an ordinary role.
SET SESSION AUTHORIZATION orders_owner;

-- The barrier in two of the databases; "setup" gives the third its script.
SELECT saga.prepare_participant('payments') \g /dev/null
SELECT saga.prepare_participant('inventory') \g /dev/null

SELECT saga.define('order_fulfilment',
  input => 'order_id bigint, customer text, city text, total numeric(12,2),
            items jsonb',
  steps => ARRAY[
    saga.step('accept',
      action       => 'SELECT shop.set_status(:order_id, ''accepted'')',
      compensation => 'SELECT shop.set_status(:order_id, ''withdrawn'')'),
    saga.parallel(
      saga.step('payment', server => 'payments',
        action       => 'SELECT payments.take_payment(:order_id, :customer, :total)',
        compensation => 'SELECT payments.refund(:order_id)'),
      saga.step('stock', server => 'inventory',
        action       => 'SELECT inventory.reserve(:order_id, :items)',
        compensation => 'SELECT inventory.release(:order_id)')),
    saga.step('shipment', server => 'deliveries',
      action       => 'SELECT delivery.arrange(:order_id, :city, :payment)',
      compensation => 'SELECT delivery.cancel_delivery(:order_id)'),
    saga.step('confirm', pivot => true,
      action       => 'SELECT shop.confirm(:order_id, :shipment)')],
  on_completed   => 'SELECT shop.set_status(:order_id, ''completed'')',
  on_compensated => 'SELECT shop.set_status(:order_id, ''cancelled'')') \g /dev/null

SELECT saga.grant('order_fulfilment', 'orders_app', '{start,see}') \g /dev/null
RESET SESSION AUTHORIZATION;
