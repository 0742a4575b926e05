-- The documents: the participants, and the saga that waits for a person.
\set ON_ERROR_STOP 1
CREATE ROLE documents_owner NOLOGIN;
GRANT saga_user TO documents_owner;
CREATE SCHEMA documents AUTHORIZATION documents_owner;

CREATE SERVER pdf FOREIGN DATA WRAPPER saga_http OPTIONS (url :'pdf', allow_private 'true');
CREATE SERVER mailer FOREIGN DATA WRAPPER saga_http OPTIONS (url :'mailer', allow_private 'true');
GRANT USAGE ON FOREIGN SERVER pdf, mailer TO documents_owner;
CREATE USER MAPPING FOR documents_owner SERVER pdf;
CREATE USER MAPPING FOR documents_owner SERVER mailer;

SET SESSION AUTHORIZATION documents_owner;
CREATE TABLE documents.document (
  name    text PRIMARY KEY,
  text    text NOT NULL,
  url     text,
  verdict text,
  status  text NOT NULL DEFAULT 'submitted'
);

SELECT saga.define('document_approval',
  input => 'document text, text text',
  steps => ARRAY[
    saga.step('pdf', server => 'pdf',
      action       => 'POST /documents {"document": :document, "text": :text}',
      compensation => 'DELETE /documents/:document'),
    saga.step('ready',
      action       => 'UPDATE documents.document SET url = :pdf.url, status = ''in review'' WHERE name = :document',
      compensation => 'UPDATE documents.document SET url = NULL WHERE name = :document'),
    saga.step('ask', server => 'mailer', compensation => 'none',
      action => 'POST /emails {"to": "reviewer@example.org", "document": :document, "link": :pdf.url}'),
    saga.signal_step('decision', signal => 'decision', timeout => '7 days', on_timeout => 'fail'),
    saga.branch_step('verdict',
      saga.when(':decision.verdict = ''approved''', ARRAY[
        saga.step('publish', compensation => 'none',
          action => 'UPDATE documents.document SET verdict = ''approved'' WHERE name = :document')]),
      saga.otherwise(ARRAY[
        saga.step('reject', compensation => 'none',
          action => 'UPDATE documents.document SET verdict = ''rejected by '' || :decision.by WHERE name = :document'),
        saga.step('tell', server => 'mailer', compensation => 'none',
          action => 'POST /emails {"to": "author@example.org", "document": :document, "by": :decision.by}')]))],
  on_completed   => 'UPDATE documents.document SET status = coalesce(substring(verdict FROM ''^[a-z]+''), ''?'') WHERE name = :document',
  on_compensated => 'UPDATE documents.document SET status = ''withdrawn'' WHERE name = :document');
SELECT saga.grant('document_approval', 'webhook', '{signal}');

CREATE FUNCTION documents.submit(name text, text text, patience interval) RETURNS uuid
LANGUAGE sql AS $$
  INSERT INTO documents.document (name, text) VALUES ($1, $2);
  SELECT saga.start('document_approval', jsonb_build_object('document', $1, 'text', $2), key => $1, deadline => $3);
$$;
