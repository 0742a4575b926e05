# The projector killed with -9 at each step of a batch and at random moments,
# and the whole server, while sessions write: exact after each recovery.
#
#   SAGA_SEED    repeats the choices of a run
#   SAGA_KILLS   how many kills (50)
use strict;
use warnings;
use lib 't/lib';
use ProjectionTest;
use RandomQuery;
use SagaTest;
use Test::More;
use Time::HiRes qw(usleep);
use Writers;

my $seed = $ENV{SAGA_SEED} || (time ^ ($$ << 8)) & 0x7fffffff;
my $kills = $ENV{SAGA_KILLS} || 50;
srand($seed);
diag("SAGA_SEED=$seed");

# fsync: what is not flushed is lost when the server is killed, as it should be
my $c = ProjectionTest->new('kill', conf => <<CONF);
saga.executors = 1
max_connections = 60
fsync = on
checkpoint_timeout = '30s'
CONF
my $node = $c->{node};
my $rq = RandomQuery->new;
my %tables = $rq->tables;
$c->sql('GRANT CREATE ON DATABASE app TO alice');
$c->alice($rq->schema . Writers->new(seed => $seed, tables => \%tables)->fill . <<'SQL');
CREATE SCHEMA m;
SELECT saga.create_projection('m.bag', 'SELECT k, s, m FROM dup');
SELECT saga.create_projection('m.joined', 'SELECT i.g, f.s, f.v FROM item i JOIN fact f ON f.item_id = i.id');
SELECT saga.create_projection('m.sums', 'SELECT i.g, count(*) AS c, sum(f.v) AS v, sum(i.n) AS n FROM item i JOIN fact f ON f.item_id = i.id GROUP BY i.g');
SELECT saga.create_projection('m.extremes', 'SELECT k, min(v) AS lo, max(v) AS hi FROM fact GROUP BY k');
SELECT saga.create_projection('m.distinct_rows', 'SELECT DISTINCT k, s FROM dup');
SELECT saga.create_projection('m.outer_join', 'SELECT i.id, f.v FROM item i LEFT JOIN fact f ON f.item_id = i.id');
SELECT saga.create_projection('m.lists', 'SELECT k, string_agg(s, '','' ORDER BY s) AS s FROM fact GROUP BY k');
SELECT saga.create_projection('m.parts', 'SELECT s, count(*) AS c, sum(n) AS n FROM part GROUP BY s');
SELECT saga.create_projection('m.ranked', 'SELECT id, k, rank() OVER (PARTITION BY k ORDER BY id) AS r FROM fact');
CREATE TABLE app.ledger (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount int NOT NULL);
ALTER TABLE app.ledger REPLICA IDENTITY FULL;
SELECT saga.create_projection('m.ledger', 'SELECT count(*) AS c, sum(amount) AS a, count(*) FILTER (WHERE amount > 5) AS f FROM app.ledger');
SQL
my @names = qw(m.bag m.joined m.sums m.extremes m.distinct_rows m.outer_join m.lists m.parts m.ranked m.ledger);
ok($c->following(@names), 'all are followed');
my $identity = $c->sql('SELECT identity FROM saga.feed');

$tables{'app.ledger'} = { key => [], rows => 2000, weight => 4, keep => 1, columns => [ [ amount => 'small' ] ] };
my $w = Writers->new(seed => $seed, tables => \%tables, prepare => 1);
$w->start($node, 'app', 4, pause => 20_000);
$w->until_done(50);

my @steps = qw(locked snapshot decoded apply applied stored);
my (%done, $crashes);
my @log;

# The server starts all backends anew when one was killed: it is back when a
# new projector is there.
sub recovered
{
    my ($old, $what) = @_;
    my $new;
    my $ok = until_true(sub {
        $new = $c->projector;
        return $new && $new ne $old;
    });
    push @log, "no projector after $what" unless $ok;
    # a session that ended between PREPARE and its second phase left that to us
    for my $gid (split /\n/, $c->ask('SELECT gid FROM pg_prepared_xacts') // '')
    {
        $c->ask((rand() < 0.5 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$gid'");
    }
    my @wrong = $ok ? $c->not_exact(@names) : ();
    push @log, map { "after $what: $_" } @wrong;
    return $ok && !@wrong;
}

my $n = 0;
while ($n < $kills && !@log)
{
    my $what = $n < 2 * @steps ? $steps[ $n % @steps ] : (@steps, ('moment') x 4, 'server')[ rand(@steps + 5) ];
    my $pid;
    if ($what eq 'server')
    {
        $pid = $c->projector // 0;
        crash_server($node) or push @log, 'the server does not start';
    }
    elsif ($what eq 'moment')
    {
        usleep(int(rand(300_000)));    # the random moment; nothing is asserted about it
        $pid = $c->projector;
        kill 9, $pid if $pid;
    }
    else
    {
        $c->delay(200);
        $pid = $c->at_step($what, 30);
        kill 9, $pid if $pid;
        push @log, "the projector was never at step $what" unless $pid;
        # the server may still be on its way
        until_true(sub { defined $c->ask('ALTER SYSTEM RESET saga.test_delay', 'postgres') && defined $c->ask('SELECT pg_reload_conf()', 'postgres') });
    }
    next unless $pid;
    $n++;
    $done{$what}++;
    recovered($pid, "kill $n, at $what");
}
note("killed at $_: $done{$_}") for sort keys %done;
is(join("\n", @log), '', "exact after each of $n kills");
cmp_ok($n, '>=', $kills, 'as many kills as wanted');
my $written = $w->stop;
ok($c->until(q(SELECT count(*) = 0 FROM saga.projections WHERE state <> 'following')), 'all are followed');
$c->same(\@names, "all equal their queries after $written transactions");
is($c->sql('SELECT identity FROM saga.feed'), $identity, 'no recovery needed a new slot');
my $ledger = $c->sql('SELECT count(*), sum(amount) FROM app.ledger');
isnt($ledger, '0|', 'the ledger has rows');
is($c->sql('SELECT c, a FROM m.ledger'), $ledger, 'no row of the ledger is lost or counted twice');
is(join('', $w->strange_errors), '', 'the writers met no strange errors');
$node->stop;
done_testing();
