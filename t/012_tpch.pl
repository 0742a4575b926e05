# The 22 queries of TPC-H as projections, kept exact under random writes by
# eight sessions.  Those with a LIMIT are there a second time without it.
#
# SAGA_SEED repeats the choices of a run, SAGA_SCALE and SAGA_TRANSACTIONS
# change how much is done.
use strict;
use warnings;
use lib 't/lib';
use ProjectionTest;
use SagaTest;
use Test::More;
use Tpch;
use Writers;

my $seed = $ENV{SAGA_SEED} || (time ^ ($$ << 8)) & 0x7fffffff;
my $scale = $ENV{SAGA_SCALE} || 0.01;
my $transactions = $ENV{SAGA_TRANSACTIONS} || 1500;
diag("SAGA_SEED=$seed");

my $c = ProjectionTest->new('tpch', conf => "saga.executors = 1\nmax_connections = 60\n");
my $node = $c->{node};
$c->sql('GRANT CREATE ON DATABASE app TO alice');
$c->alice(Tpch->load($scale) . 'CREATE SCHEMA m');

my %query = Tpch->queries;
is(scalar(keys %query), 22, '22 queries');
for my $name (grep { $query{$_} =~ /LIMIT/ } keys %query)
{
    ($query{"${name}_all"} = $query{$name}) =~ s/\s*LIMIT \d+\s*$//;
}

my @names;
for my $name (sort keys %query)
{
    ok($c->project(alice => "m.$name", $query{$name}, search_path => 'tpch'), "$name is accepted") and push @names, "m.$name";
}
ok($c->following(@names), 'all are filled and followed');
$c->exact(\@names, 'all are exact when filled');
is($c->sql(q(SELECT count(*) FROM saga.projections WHERE class IS NULL OR stages IS NULL)), '0', 'each tells its class');

# What docs/tpch.md says is so.
SKIP:
{
    skip 'no docs/tpch.md', 1 unless -e 'docs/tpch.md';
    my $text = Tpch::slurp('docs/tpch.md');
    my @wrong;
    for my $name (grep { /^q\d+$/ } sort keys %query)
    {
        my $class = $c->sql("SELECT class FROM saga.projections WHERE name = 'm.$name'");
        my $number = $name =~ s/^q0?//r;
        push @wrong, "Q$number: $class" unless $text =~ /^\| Q$number \|[^|]*\| \Q$class\E \|/m;
    }
    is(join("\n", @wrong), '', 'docs/tpch.md tells the classes');
}

# ---- writers ----

my $w = Writers->new(seed => $seed, tables => { Tpch->tables($scale) }, prepare => 1);
$w->start($node, 'app', 8, chunk => 5, pause => 100_000);
my $checks = 0;
my @wrong;
while (($w->done < $transactions || $checks < @names) && !@wrong)
{
    # each looked at in turn, at the snapshot where it stands
    my $name = $names[ $checks++ % @names ];
    my $got = $c->compare($name);
    push @wrong, "$name: $got (" . $c->state($name) . ')' if $got ne '0|0';
}
my $done = $w->stop;
is(join("\n", @wrong), '', "exact in $checks checks while $done transactions were written");
is(join('', $w->strange_errors), '', 'the writers met no strange errors');
ok($c->until(q(SELECT count(*) = 0 FROM saga.projections WHERE state <> 'following')), 'all are followed');
$c->same(\@names, 'all equal their queries at the end');
is($c->sql(q(SELECT count(*) FROM saga.stat_projections WHERE errors > 0)), '0', 'no attempt has failed');
my $empty = join ' ', grep { !/_all/ && $c->sql("SELECT count(*) FROM $_") eq '0' } @names;
note("without rows at the end: $empty");

# The refresh functions of the benchmark: new orders, old orders deleted.
$c->alice(<<'SQL');
SET search_path = tpch;
BEGIN;
INSERT INTO orders SELECT o_orderkey + 10000000, o_custkey, o_orderstatus, o_totalprice, o_orderdate, o_orderpriority,
  o_clerk, o_shippriority, o_comment FROM orders WHERE o_orderkey % 100 = 1;
INSERT INTO lineitem SELECT l_orderkey + 10000000, l_partkey, l_suppkey, l_linenumber, l_quantity, l_extendedprice, l_discount,
  l_tax, l_returnflag, l_linestatus, l_shipdate, l_commitdate, l_receiptdate, l_shipinstruct, l_shipmode, l_comment
  FROM lineitem WHERE l_orderkey % 100 = 1 AND l_orderkey < 10000000;
COMMIT;
BEGIN;
DELETE FROM orders WHERE o_orderkey % 100 = 2;
DELETE FROM lineitem WHERE l_orderkey % 100 = 2;
COMMIT;
SQL
$c->same(\@names, 'and after the refresh functions');
$c->alice('TRUNCATE tpch.lineitem; TRUNCATE tpch.orders');
$c->same(\@names, 'and with two tables empty');
$node->stop;
done_testing();
