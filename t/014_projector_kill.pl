# The projector killed with -9 at each step of a batch and at random moments,
# and the whole server, while sessions write: exact after each recovery.
#
#   SAGA_SEED    repeats the choices of a run
#   SAGA_KILLS   how many kills (50)
use strict;
use warnings;
use lib 't/lib';
use ProjectionTest;
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
my %tables = $c->random_tables($seed);
$c->alice(<<'SQL');
CREATE TABLE ledger (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount int NOT NULL);
ALTER TABLE ledger REPLICA IDENTITY FULL;
SQL
my @names = $c->over_random_tables(
    joined => 'SELECT i.g, f.s, f.v FROM item i JOIN fact f ON f.item_id = i.id',
    distinct_rows => 'SELECT DISTINCT k, s FROM dup',
    lists => q(SELECT k, string_agg(s, ',' ORDER BY s) AS s FROM fact GROUP BY k),
    parts => 'SELECT s, count(*) AS c, sum(n) AS n FROM part GROUP BY s',
    ranked => 'SELECT id, k, rank() OVER (PARTITION BY k ORDER BY id) AS r FROM fact',
    ledger => 'SELECT count(*) AS c, sum(amount) AS a, count(*) FILTER (WHERE amount > 5) AS f FROM app.ledger');
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
