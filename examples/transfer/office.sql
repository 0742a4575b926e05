-- The clearing office: how it reaches the two banks, its own journal, and what
-- a transfer is.
\set ON_ERROR_STOP 1
CREATE EXTENSION saga;
CREATE ROLE office LOGIN;
GRANT saga_user TO office;
CREATE SCHEMA office AUTHORIZATION office;

CREATE SERVER north FOREIGN DATA WRAPPER saga_postgres
  OPTIONS (host '127.0.0.1', port :'north_port', dbname :'north_db', pool_size '8');
CREATE SERVER south FOREIGN DATA WRAPPER saga_postgres
  OPTIONS (host '127.0.0.1', port :'south_port', dbname :'south_db', pool_size '8');
GRANT USAGE ON FOREIGN SERVER north, south TO office;
CREATE USER MAPPING FOR office SERVER north OPTIONS (user 'bank_saga', password :'password');
CREATE USER MAPPING FOR office SERVER south OPTIONS (user 'bank_saga', password :'password');

SET SESSION AUTHORIZATION office;
SELECT saga.prepare_participant('north') \g /dev/null
SELECT saga.prepare_participant('south') \g /dev/null

CREATE TABLE office.journal (
  transfer uuid PRIMARY KEY,
  amount   numeric(12,2) NOT NULL
);

-- One definition for both protocols: saga.start(..., protocol => 'two_phase').
-- Compensations are the saga's; two-phase commit has no use for them.
SELECT saga.define('transfer',
  protocols => '{saga,two_phase}',
  input => 'source integer, target integer, amount numeric(12,2)',
  steps => ARRAY[
    saga.step('withdraw', server => 'north',
      action       => 'SELECT bank.book(:saga_id, :source, -:{amount})',
      compensation => 'SELECT bank.book(:saga_id, :source, :amount)'),
    saga.step('deposit', server => 'south',
      action       => 'SELECT bank.book(:saga_id, :target, :amount)',
      compensation => 'SELECT bank.book(:saga_id, :target, -:{amount})'),
    saga.step('journal', pivot => true,
      action       => 'INSERT INTO office.journal VALUES (:saga_id, :amount)')]) \g /dev/null
RESET SESSION AUTHORIZATION;
