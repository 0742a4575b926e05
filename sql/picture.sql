--
-- Pictures: graph(), timeline(), report_html().  Needs no workers.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS saga;
CREATE ROLE regress_picture;
CREATE ROLE regress_picture_other;
GRANT saga_user TO regress_picture, regress_picture_other;
RESET client_min_messages;
SET ROLE regress_picture;
\pset format unaligned
\pset tuples_only on

SELECT saga.define('pic "<ture>', steps => ARRAY[
  saga.step('first', 'SELECT 1', compensation => 'SELECT 2'),
  saga.parallel(saga.step('left', 'SELECT 1', 'SELECT 1'), saga.undo_step('right', 'SELECT 1')),
  saga.step('last', 'SELECT 1', pivot => true),
  saga.step('aside', 'SELECT 1', after => '{first}', on_failure => 'continue', compensation => 'none')]);
SELECT saga.graph('pic "<ture>');
SELECT saga.graph('pic "<ture>', format => 'dot', version => 1);
SELECT saga.graph('pic "<ture>', format => 'png');
SELECT saga.graph('pic "<ture>', version => 2);
SELECT saga.graph('no such');

-- a saga that has not begun; nothing a user wrote is markup
SELECT saga.start('pic "<ture>', '{"x": "<script>alert(1)</script>"}', start_at => 'infinity') AS id \gset
SELECT saga.timeline(:'id');
SELECT saga.timeline(:'id', format => 'dot');
SELECT saga.timeline(:'id', format => 'png');
SELECT saga.timeline('00000000-0000-0000-0000-000000000000');
SELECT page LIKE '<!DOCTYPE html>%</html>%' AS whole, page LIKE '%<script%' AS script,
       page LIKE '%&lt;script&gt;alert(1)&lt;/script&gt;%' AS input, page LIKE '%pic &quot;&lt;ture&gt;%' AS name,
       page ~ '(src|href|url)\s*[=(]' AS refers
  FROM saga.report_html(:'id') AS page;
SELECT page LIKE '<!DOCTYPE html>%</html>%' AS whole, page LIKE '%<script%' AS script,
       page LIKE '%pic &quot;&lt;ture&gt;%' AS name, page ~ '(src|href|url)\s*[=(]' AS refers
  FROM saga.report_html() AS page;

-- others see nothing of it
SET ROLE regress_picture_other;
SELECT saga.graph('pic "<ture>');
\set VERBOSITY sqlstate
SELECT saga.timeline(:'id');
SELECT saga.report_html(:'id');
\set VERBOSITY default
SELECT page LIKE '%pic &quot;%' AS name FROM saga.report_html() AS page;

RESET ROLE;
DELETE FROM saga.instance WHERE id = :'id';
SET ROLE regress_picture;
SELECT saga.drop_definition('pic "<ture>');
RESET ROLE;
DROP OWNED BY regress_picture, regress_picture_other;
DROP ROLE regress_picture, regress_picture_other;
