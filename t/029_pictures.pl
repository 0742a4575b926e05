# Pictures of sagas that have run: bars, colours, and nothing of a user's is
# markup.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use Test::More;

my $c = SagaTest->coordinator('coordinator');
$c->alice(<<'SQL');
CREATE FUNCTION shout(what text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '<b onclick="x">%</b>', what USING ERRCODE = 'SGB01';
END
$$;
SELECT saga.define('drawn', input => 'n integer', steps => ARRAY[
  saga.step('first', 'SELECT act(''first'')', 'SELECT act(''undone'')'),
  saga.step('each', 'SELECT :item::integer + pg_sleep(0.05)::text::integer', for_each => '[1, 2]', compensation => 'none',
            on_failure => 'continue'),
  saga.sleep_step('nap', '300 ms'),
  saga.step('last', 'SELECT CASE WHEN :n > 0 THEN shout(''no & never'') END')])
SQL
my $done = $c->start('drawn', '{"n": 0}');
my $undone = $c->start('drawn', '{"n": 1}');
is($c->ended($done), 'completed|||', 'one completes');
is($c->ended($undone), 'compensated|declined|last|SGB01', 'one comes back');

my $picture = $c->alice("SELECT saga.timeline('$undone')");
like($picture, qr/^gantt\n  title drawn compensated\n  dateFormat x\n/, 'a Gantt chart');
like($picture, qr/section first\n    action done :done, \d+, \d+\n    undo undone :done, \d+, \d+\n/, 'with the bars of a step together');
like($picture, qr/section each\[1\]\n    action failed|section each\[1\]\n    action continued/, 'also of one element');
like($picture, qr/section last\n    action failed :crit, /, 'a failure stands out');
my ($from, $to) = $picture =~ /section nap\n    action done :done, (\d+), (\d+)\n/;
cmp_ok($to - $from, '>=', 290, 'a sleep is as long as it was');
is($c->alice("SELECT count(*) FROM saga.log WHERE saga_id = '$undone' AND message LIKE '%<b onclick%'"), '1', 'a message with markup');
for my $page ($c->alice("SELECT saga.report_html('$undone')"), $c->alice('SELECT saga.report_html()'))
{
    unlike($page, qr/<b\b|onclick="/, 'is none in a page');
    my @open;
    my $fault = '';
    while ($page =~ m{<(/?)(\w+)[^>]*>}g)
    {
        next if $2 eq 'meta';
        $1 ? (pop(@open) // '') eq $2 || ($fault ||= "$2 is closed") : push @open, $2;
    }
    is("$fault@open", '', 'which is well formed');
    like($page, qr/^<!DOCTYPE html>/, 'and whole');
}
like($c->alice("SELECT saga.report_html('$undone')"), qr/&lt;b onclick=&quot;x&quot;&gt;no &amp; never/, 'it is shown as text');
like($c->alice("SELECT saga.timeline('$done', format => 'dot')"),
    qr/^digraph timeline \{.*label="first\\naction: done.*n1 -> n2;.*\}$/s, 'the same for Graphviz');
is($c->alice("SELECT starts_per_s > 0 AND ends_per_s > 0 AND p50_ms <= p95_ms AND p95_ms <= p99_ms FROM saga.stat_sagas"), 't',
    'rates and percentiles');

done_testing();
