-- The bank: its own server, its own rules, nothing about sagas.
\set ON_ERROR_STOP 1
CREATE ROLE bank_saga LOGIN PASSWORD 'bank';
CREATE SCHEMA bank;
CREATE TABLE bank.entry (
  order_id text NOT NULL,
  kind     text NOT NULL CHECK (kind IN ('take', 'refund')),
  amount   numeric(12,2) NOT NULL,
  at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION bank.take(order_id text, card text, amount numeric) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = bank, pg_temp AS $$
BEGIN
  IF $2 = 'stolen' THEN
    RAISE EXCEPTION 'card declined' USING ERRCODE = 'SGB01';
  END IF;
  INSERT INTO entry (order_id, kind, amount) VALUES ($1, 'take', $3);
  RETURN 'receipt-' || $1;
END
$$;
CREATE FUNCTION bank.refund(order_id text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = bank, pg_temp AS $$
  INSERT INTO entry (order_id, kind, amount) SELECT e.order_id, 'refund', e.amount FROM entry e WHERE e.order_id = $1;
$$;
GRANT USAGE ON SCHEMA bank TO bank_saga;
GRANT CREATE ON DATABASE :DBNAME TO bank_saga;
