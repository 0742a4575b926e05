-- A bank: its own server, accounts that cannot be overdrawn, and a ledger that
-- is only ever added to.  It knows nothing of sagas or two-phase commit.
\set ON_ERROR_STOP 1
CREATE ROLE bank_owner NOLOGIN;
CREATE ROLE bank_saga LOGIN PASSWORD :'password';
CREATE SCHEMA bank AUTHORIZATION bank_owner;
SET ROLE bank_owner;

CREATE TABLE bank.account (
  id      integer PRIMARY KEY,
  balance numeric(12,2) NOT NULL CHECK (balance >= 0),
  closed  boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);
INSERT INTO bank.account (id, balance) SELECT n, 1000 FROM generate_series(1, 1000) n;
UPDATE bank.account SET closed = true WHERE id = 1000;

CREATE TABLE bank.ledger (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  transfer uuid NOT NULL,
  account  integer NOT NULL REFERENCES bank.account,
  amount   numeric(12,2) NOT NULL
);

-- Book an amount, which may be negative, or decline.
CREATE FUNCTION bank.book(transfer uuid, account integer, amount numeric)
RETURNS numeric
LANGUAGE plpgsql SECURITY DEFINER SET search_path = bank, pg_temp AS $$
DECLARE
  now_there numeric;
BEGIN
  UPDATE account a SET balance = balance + $3 WHERE id = $2 AND NOT closed
  RETURNING balance INTO now_there;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'account % is closed', $2 USING ERRCODE = 'SGB01';
  END IF;
  INSERT INTO ledger (transfer, account, amount) VALUES ($1, $2, $3);
  RETURN now_there;
END
$$;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA bank FROM PUBLIC;
GRANT USAGE ON SCHEMA bank TO bank_saga;
GRANT EXECUTE ON FUNCTION bank.book TO bank_saga;

-- Let the role that the coordinator comes as install the barrier itself.
RESET ROLE;
SELECT format('GRANT CREATE ON DATABASE %I TO bank_saga', current_database()) \gexec
