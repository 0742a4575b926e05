# Random queries as projections, kept exact under random writes.
#
#   SAGA_SEED      repeats the queries of a run
#   SAGA_QUERIES   how many (500 for a long run)
#   SAGA_QUERY     only the one of this number
#   SAGA_OUTER     outer joins in all of them (otherwise in every fourth)
#   SAGA_LARGE     rows of the large transactions after the many small ones
use strict;
use warnings;
use lib 't/lib';
use ProjectionTest;
use RandomQuery;
use SagaTest;
use Test::More;
use Writers;

my $seed = $ENV{SAGA_SEED} || (time ^ ($$ << 8)) & 0x7fffff;
my $number = $ENV{SAGA_QUERIES} || 100;
my $at_once = 20;
diag("SAGA_SEED=$seed");

my $c = ProjectionTest->new('random', conf => "saga.executors = 1\nmax_connections = 60\n");
my $node = $c->{node};
my $rq = RandomQuery->new;
my $outer = RandomQuery->new(outer => 75);
my $large = $ENV{SAGA_LARGE} // 1500;
my %tables = $c->random_tables($seed);

my @numbers = $ENV{SAGA_QUERY} ? ($ENV{SAGA_QUERY}) : (1 .. $number);
my ($accepted, @refused, %class) = (0);
while (@numbers)
{
    my @now = splice @numbers, 0, $at_once;
    my (%query, @names, @odd);
    for my $n (@now)
    {
        my $query = ($ENV{SAGA_OUTER} || $n % 4 == 0 ? $outer : $rq)->nth($seed, $n);
        my ($code, $err) = $c->try_project('alice', "m.r$n", $query);
        if ($code eq '')
        {
            $query{"m.r$n"} = $query;
            push @names, "m.r$n";
            $accepted++;
        }
        elsif ($code eq '0A000')
        {
            push @refused, "$n: $query\n$err";
        }
        else
        {
            push @odd, "$n: $query\n$err";
        }
    }
    my $what = "$now[0] to $now[-1]";
    is(join("\n", @odd), '', "$what: accepted, or refused as not supported");
    ok($c->following(@names), "$what: followed");
    $class{$_}++ for split /\n/, $c->sql(q(SELECT class FROM saga.projections));

    my $w = Writers->new(seed => $seed + $now[0], tables => \%tables, prepare => 1);
    $w->start($node, 'app', 4);
    my ($rounds, %wrong) = (0);
    while ($w->done < ($ENV{SAGA_TRANSACTIONS} || 300))
    {
        $wrong{$_}++ for $c->not_exact($names[ $rounds++ % @names ]);
        last if %wrong;
    }
    my $done = $w->stop;
    is(join("\n", sort keys %wrong), '', "$what: exact in $rounds checks while $done transactions were written");
    is(join('', $w->strange_errors), '', "$what: the writers met no strange errors");
    $c->same(\@names, "$what: equal at the end");

    # enough rows at a time for other plans, or for being computed in full
    my %large = (
        'rows are inserted' => "INSERT INTO rq.fact SELECT 1000 + i, i % 90, i % 150, 's' || i % 100, i, i / 4.0 FROM generate_series(1, $large) i;
            INSERT INTO rq.item SELECT 1000 + i, i % 150, 's' || i % 100, i % 30, NULL, i % 3 = 0 FROM generate_series(1, $large) i",
        'their keys change' => q(UPDATE rq.fact SET item_id = CASE WHEN id % 3 > 0 THEN id + 5 END, k = nullif(k, 7) WHERE id > 1000;
            UPDATE rq.item SET k = nullif(k + 1, 20), id = id + 100000 WHERE id BETWEEN 1100 AND 1200 OR id % 97 = 5),
        'they are deleted' => 'DELETE FROM rq.fact WHERE id > 1000; DELETE FROM rq.item WHERE id > 1000');
    for my $step ('rows are inserted', 'their keys change', 'they are deleted')
    {
        last unless $large;
        $c->alice("BEGIN; $large{$step}; COMMIT");
        $c->exact(\@names, "$what: exact after $large $step at once");
    }
    for my $name (@names)
    {
        my ($is_wrong) = grep { /^\Q$name\E\b/ } keys %wrong;
        diag("SAGA_SEED=$seed SAGA_QUERY=@{[ $name =~ /(\d+)$/ ]}: $query{$name}") if $is_wrong || $c->state($name) !~ /^following/;
    }
    $c->alice(join '', map { "SELECT saga.drop_projection('$_');\n" } @names);
}
note("accepted by class: $_ $class{$_}") for sort keys %class;
note("refused: $_") for @refused;
my $all = $accepted + @refused;
cmp_ok($accepted, '>=', 0.9 * $all, "$accepted of $all queries are accepted");
is($c->sql(q(SELECT count(*) FROM pg_class WHERE relnamespace = 'saga_data'::regnamespace)), '0', 'storage goes with its projection');
$node->stop;
done_testing();
