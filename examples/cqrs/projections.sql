-- The read side.  Each is a view whose rows are stored, kept up from the WAL,
-- and can be read from the moment it exists.
\set ON_ERROR_STOP 1
SET SESSION AUTHORIZATION shop_owner;
SET search_path = shop;

-- What each customer ordered by month.
SELECT saga.create_projection('monthly_orders', $$
  SELECT date_trunc('month', o.ordered_at) AS month, c.name, c.email,
         sum(i.price * i.quantity) AS total_price, sum(i.quantity) AS total_quantity
    FROM customer c
    JOIN orders o ON o.customer_id = c.id
    JOIN order_item i ON i.order_id = o.id
   GROUP BY 1, 2, 3 $$,
  indexes => '{"email, month"}');

-- All orders of a customer for a page, in one read by an index.
SELECT saga.create_projection('customer_orders', $$
  SELECT c.id AS customer_id, c.name, o.id AS order_id, o.ordered_at,
         p.name AS product, i.quantity, i.price, i.price * i.quantity AS amount
    FROM customer c
    JOIN orders o ON o.customer_id = c.id
    JOIN order_item i ON i.order_id = o.id
    JOIN product p ON p.id = i.product_id $$,
  indexes => '{customer_id}');

SELECT saga.create_projection('sales_by_state', $$
  SELECT c.state, count(*) AS lines, sum(i.quantity) AS quantity, sum(i.price * i.quantity) AS revenue
    FROM customer c
    JOIN orders o ON o.customer_id = c.id
    JOIN order_item i ON i.order_id = o.id
   GROUP BY c.state $$);

SELECT saga.create_projection('sales_by_product', $$
  SELECT p.id, p.name, sum(i.quantity) AS quantity, sum(i.price * i.quantity) AS revenue
    FROM product p
    JOIN order_item i ON i.product_id = p.id
   GROUP BY p.id, p.name $$,
  indexes => '{"revenue DESC"}');

GRANT SELECT ON monthly_orders, customer_orders, sales_by_state, sales_by_product TO shop_web;
