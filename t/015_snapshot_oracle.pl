# Contents against the query, over and over, at exactly the snapshot where the
# projection stands, while sessions write whose commits become visible early
# (asynchronous), late (they wait for a standby that is not there), or after a
# PREPARE.
#
# SAGA_SEED repeats the choices of a run, SAGA_TRANSACTIONS changes how much is
# done.
use strict;
use warnings;
use lib 't/lib';
use ProjectionTest;
use SagaTest;
use Test::More;
use Time::HiRes qw(usleep);
use Writers;

my $seed = $ENV{SAGA_SEED} || (time ^ ($$ << 8)) & 0x7fffffff;
my $transactions = $ENV{SAGA_TRANSACTIONS} || 3000;
diag("SAGA_SEED=$seed");

my $c = ProjectionTest->new('oracle', conf => "saga.executors = 1\nmax_connections = 80\nmax_prepared_transactions = 30\n");
my $node = $c->{node};
my %tables = $c->random_tables($seed);
my @names = $c->over_random_tables(
    self_join => 'SELECT a.s AS s1, b.s AS s2, a.k FROM dup a JOIN dup b ON a.k = b.k',
    four => 'SELECT i.g, f.s, p.n, t.name FROM item i JOIN fact f ON f.item_id = i.id JOIN part p ON p.id = f.id JOIN tiny t ON t.k = f.k',
    both_sides => 'SELECT k, s FROM fact INTERSECT ALL SELECT k, s FROM dup',
    not_there => 'SELECT id, g FROM item i WHERE NOT EXISTS (SELECT FROM fact f WHERE f.item_id = i.id)');
ok($c->following(@names), 'all are followed');

# Whether a commit waits is each session's: those that want a standby wait
# while one is named that is not there.  They do not truncate: that lock would
# keep all others, and the projector, waiting as well.
my @w;
# no TRUNCATE: it queues behind a commit that hangs, and then a projection of
# that table cannot be locked, followed or checked until the commit ends
push @w, Writers->new(seed => $seed, tables => \%tables, truncate => 0, settings => "SET synchronous_commit = on;\n");
push @w, Writers->new(seed => $seed + 1, tables => \%tables, truncate => 0, settings => "SET synchronous_commit = off;\n");
push @w, Writers->new(seed => $seed + 2, tables => \%tables, truncate => 0, prepare => 1, settings => "SET synchronous_commit = local;\n");
$w[0]->start($node, 'app', 3, chunk => 3);
$w[1]->start($node, 'app', 2);
$w[2]->start($node, 'app', 2);
my $sum = sub { my $s = 0; $s += $_->done for @w; return $s };

my ($checks, $late, @wrong) = (0, 0);
my $missing = 0;
my $deferred = 0;
while ($sum->() < $transactions && !@wrong)
{
    # standby named: commits that want it hang; no longer named: all go on
    if ($checks % 5 == 0)
    {
        $missing = !$missing;
        $c->sql($missing ? q(ALTER SYSTEM SET synchronous_standby_names = 'missing') : 'ALTER SYSTEM RESET synchronous_standby_names', 'postgres');
        $c->sql('SELECT pg_reload_conf()', 'postgres');
    }
    elsif ($missing)
    {
        $late++ if $c->sql(q(SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep')) > 0;
        $deferred++ if ($c->sql(q(SELECT max(waiting) FROM saga.stat_projections)) || 0) > 0;
    }
    push @wrong, $c->not_exact($names[ $checks++ % @names ]);
}
$c->sql('ALTER SYSTEM RESET synchronous_standby_names', 'postgres');
$c->sql('SELECT pg_reload_conf()', 'postgres');
$_->stop for @w;
is(join("\n", @wrong), '', "exact in $checks checks while " . $sum->() . ' transactions were written');
cmp_ok($late, '>', 0, "commits were late in $late of the checks");
note("the projector had transactions to wait for in $deferred of the looks");
is(join('', map { $_->strange_errors } @w), '', 'the writers met no strange errors');
$c->same(\@names, 'all equal their queries at the end');
$c->exact(\@names, 'and by the projector\'s own check');
$node->stop;
done_testing();
