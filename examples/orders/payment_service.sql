-- The payment service: its own server, its own rules.  It knows nothing of
-- sagas; that an action happens once, however often it is asked for, is seen
-- to by the barrier that saga.prepare_participant() puts beside it.
\set ON_ERROR_STOP 1
CREATE ROLE payments_owner NOLOGIN;
CREATE ROLE payments_saga LOGIN PASSWORD :'password';
CREATE SCHEMA payments AUTHORIZATION payments_owner;
SET ROLE payments_owner;

CREATE TABLE payments.account (
  customer text PRIMARY KEY,
  opening  numeric(12,2) NOT NULL,
  balance  numeric(12,2) NOT NULL
);

CREATE TABLE payments.payment (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  order_id bigint NOT NULL,
  customer text NOT NULL REFERENCES payments.account,
  amount   numeric(12,2) NOT NULL CHECK (amount > 0),
  status   text NOT NULL CHECK (status IN ('taken', 'refunded'))
);
CREATE INDEX ON payments.payment (order_id);

-- What was really done, in the order in which it was done.
CREATE TABLE payments.effect (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  order_id bigint NOT NULL,
  kind     text NOT NULL CHECK (kind IN ('take', 'refund')),
  amount   numeric(12,2),
  at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION payments.keep_effect() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'effects are only ever added';
END
$$;
CREATE TRIGGER keep_effect BEFORE UPDATE OR DELETE OR TRUNCATE
  ON payments.effect EXECUTE FUNCTION payments.keep_effect();

-- Take the money, or decline: SGB01 says "no, and do not ask again".
CREATE FUNCTION payments.take_payment(order_id bigint, customer text,
                                      amount numeric) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
  payment_id bigint;
BEGIN
  UPDATE account a SET balance = a.balance - $3
   WHERE a.customer = $2 AND a.balance >= $3;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'insufficient funds'
      USING ERRCODE = 'SGB01', DETAIL = format('%s asked for %s.', $2, $3);
  END IF;
  INSERT INTO payment (order_id, customer, amount, status)
  VALUES ($1, $2, $3, 'taken') RETURNING id INTO payment_id;
  INSERT INTO effect (order_id, kind, amount) VALUES ($1, 'take', $3);
  RETURN payment_id;
END
$$;

CREATE FUNCTION payments.refund(order_id bigint) RETURNS numeric
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
  back payment%ROWTYPE;
BEGIN
  UPDATE payment p SET status = 'refunded'
   WHERE p.order_id = $1 AND p.status = 'taken' RETURNING p.* INTO back;
  UPDATE account a SET balance = a.balance + back.amount
   WHERE a.customer = back.customer;
  INSERT INTO effect (order_id, kind, amount)
  VALUES ($1, 'refund', back.amount);
  RETURN back.amount;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA payments FROM PUBLIC;
GRANT USAGE ON SCHEMA payments TO payments_saga;
GRANT EXECUTE ON FUNCTION payments.take_payment, payments.refund
  TO payments_saga;

-- Customers with money, and customers without.
INSERT INTO payments.account
SELECT 'customer-' || n, 100000, 100000 FROM generate_series(0, 199) n
UNION ALL
SELECT 'penniless-' || n, 1, 1 FROM generate_series(0, 49) n
UNION ALL
SELECT 'barred-' || n, 100000, 100000 FROM generate_series(0, 19) n;

-- Let the role that the coordinator comes as install the barrier itself.
RESET ROLE;
SELECT format('GRANT CREATE ON DATABASE %I TO payments_saga',
              current_database()) \gexec
