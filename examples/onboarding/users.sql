-- The users: their accounts, the participants, and the saga over them.
\set ON_ERROR_STOP 1
CREATE ROLE users_owner NOLOGIN;
GRANT saga_user TO users_owner;
CREATE SCHEMA users AUTHORIZATION users_owner;

CREATE SERVER profiles FOREIGN DATA WRAPPER saga_postgres
  OPTIONS (host '127.0.0.1', port :'profiles_port', dbname 'profiles');
CREATE SERVER audit FOREIGN DATA WRAPPER saga_postgres
  OPTIONS (host '127.0.0.1', port :'audit_port', dbname 'audit');
CREATE SERVER mailer FOREIGN DATA WRAPPER saga_http
  OPTIONS (url :'mailer', allow_private 'true');
GRANT USAGE ON FOREIGN SERVER profiles, audit, mailer TO users_owner;
CREATE USER MAPPING FOR users_owner SERVER profiles OPTIONS (user 'profiles_saga', password 'profiles');
CREATE USER MAPPING FOR users_owner SERVER audit OPTIONS (user 'audit_saga', password 'audit');
CREATE USER MAPPING FOR users_owner SERVER mailer;

SET SESSION AUTHORIZATION users_owner;
CREATE TABLE users.account (
  name   text PRIMARY KEY,
  email  text NOT NULL,
  status text NOT NULL DEFAULT 'registered'
);
CREATE TABLE users.event (
  name    text NOT NULL,
  account text NOT NULL,
  at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

SELECT saga.prepare_participant('profiles') \g /dev/null
SELECT saga.prepare_participant('audit') \g /dev/null
SELECT saga.define('onboarding',
  input => 'name text, email text',
  steps => ARRAY[
    saga.parallel(
      saga.step('profile', server => 'profiles',
        action       => 'INSERT INTO profiles.entry (name, kind) VALUES (:name, ''create'')',
        compensation => 'INSERT INTO profiles.entry (name, kind) VALUES (:name, ''remove'')'),
      saga.step('welcome', server => 'mailer',
        action       => 'POST /welcome {"to": :email, "text": "Welcome, :{name}!"}',
        compensation => 'POST /apologies {"to": :email}'),
      saga.step('record', server => 'audit',
        action       => 'INSERT INTO audit.entry (name, kind) VALUES (:name, ''record'')',
        compensation => 'INSERT INTO audit.entry (name, kind) VALUES (:name, ''void'')')),
    saga.step('complete', pivot => true,
      action => 'INSERT INTO users.event (name, account) VALUES (''OnboardingComplete'', :name)'),
    saga.step('notify', server => 'mailer',
      action => 'POST /notifications {"to": "team@example.org", "about": :name}')],
  on_completed   => 'UPDATE users.account SET status = ''active'' WHERE name = :name',
  on_compensated => 'UPDATE users.account SET status = ''rejected'' WHERE name = :name');

CREATE FUNCTION users.register(name text, email text) RETURNS uuid
LANGUAGE sql AS $$
  INSERT INTO users.account (name, email) VALUES ($1, $2);
  SELECT saga.start('onboarding', jsonb_build_object('name', $1, 'email', $2), key => $1);
$$;
