# ProjectionTest: a server with projections, for the tests in t/.
#
#   my $c = ProjectionTest->new('c', conf => "...");
#   my %tables = $c->random_tables($seed);   those of RandomQuery, with rows
#   my @names = $c->over_random_tables;      projections over them, and more:
#   my @names = $c->over_random_tables(x => 'SELECT ...');
#   $c->project(alice => 'sums', 'SELECT ...', indexes => q('{k}'));
#   $c->following('sums');          wait until the stored rows are shown
#   $c->exact('sums', 'a test');    the projector compares, at its own snapshot
#   $c->same('sums', 'a test');     we compare, when nobody writes
#   $c->projector;                  its process
#
# It is a SagaTest coordinator; database "app" with the role alice, who has
# schema app.
package ProjectionTest;

use strict;
use warnings;
use parent -norequire, 'SagaTest';
use SagaTest;
use PostgreSQL::Test::Utils ();
use RandomQuery;
use Test::More;
use Time::HiRes qw(usleep time);
use Writers;

our $limit = $PostgreSQL::Test::Utils::timeout_default;

# Newer minor releases let the administrator say which libraries may decode.
sub library_setting
{
    my $described = qx(postgres --describe-config 2>/dev/null);
    return $described =~ /^output_plugin_libraries\t/m ? "output_plugin_libraries = 'pgoutput, test_decoding, saga'\n" : '';
}

sub new
{
    my ($class, $name, %arg) = @_;
    $arg{conf} = library_setting() . <<CONF . ($arg{conf} // '');
fsync = off
autovacuum_naptime = '10s'
deadlock_timeout = '100ms'
shared_buffers = '64MB'
max_wal_size = '2GB'
log_statement = none
saga.read_timeout = '${limit}s'
CONF
    return SagaTest::coordinator($class, $name, %arg);
}

# alice has them, and schema "m" for projections.  Returns what Writers want.
sub random_tables
{
    my ($self, $seed) = @_;
    my $rq = RandomQuery->new;
    my %tables = $rq->tables;
    $self->sql('GRANT CREATE ON DATABASE app TO alice');
    $self->alice($rq->schema . Writers->new(seed => $seed, tables => \%tables)->fill . 'CREATE SCHEMA m');
    return %tables;
}

# One of each kind of upkeep, and those given (name => query): their names.
sub over_random_tables
{
    my ($self, %more) = @_;
    my %query = (
        bag => 'SELECT k, s, m FROM dup',
        sums => 'SELECT i.g, count(*) AS c, sum(f.v) AS v, sum(i.n) AS n FROM item i JOIN fact f ON f.item_id = i.id GROUP BY i.g',
        extremes => 'SELECT k, min(v) AS lo, max(v) AS hi FROM fact GROUP BY k',
        outer_join => 'SELECT i.id, f.v FROM item i LEFT JOIN fact f ON f.item_id = i.id',
        %more);
    $self->alice(join '', "SET search_path = rq;\n",
        map { "SELECT saga.create_projection('m.$_', " . literal($query{$_}) . ");\n" } sort keys %query);
    return map { "m.$_" } sort keys %query;
}

sub literal
{
    my ($text) = @_;
    $text =~ s/'/''/g;
    return "E'$text'" if $text =~ s/\\/\\\\/g;
    return "'$text'";
}

# (SQLSTATE or '', error) of creating one; role undef: the superuser
sub try_project
{
    my ($self, $role, $name, $query, %arg) = @_;
    my $path = delete $arg{search_path};
    my $more = join '', map { ", $_ => $arg{$_}" } sort keys %arg;
    my ($code, $err) = $self->try($role,
        ($path ? "SET search_path = $path;\n" : '') . 'SELECT saga.create_projection(' . literal($name) . ', ' . literal($query) . "$more)");
    return ($code, $err);
}

sub project
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($self, $role, $name, $query, %arg) = @_;
    my ($code, $err) = $self->try_project($role, $name, $query, %arg);
    diag("$name: $err\n$query") if $code;
    return $code eq '';
}

# Wait until these are filled and follow.
sub following
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($self, @names) = @_;
    my $list = join ', ', map { literal($_) } @names;
    my $left;
    my $ok = until_true(sub {
        $left = $self->ask("SELECT string_agg(format('%s: %s %s', name, state, coalesce(reason, '')), '; ')
          FROM saga.projections WHERE name IN ($list) AND NOT (state = 'following' AND filled AND NOT stale)");
        return defined $left && $left eq '' || defined $left && $left =~ /: parked/;
    });
    $ok &&= $left eq '';
    diag("not followed: " . ($left // 'no answer')) unless $ok;
    return $ok;
}

# All that is committed now is in it.
sub caught_up
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($self, $name) = @_;
    my $got = $self->ask("SELECT saga.wait_for_projection(" . literal($name) . ", timeout => '$limit s')");
    diag("$name does not catch up: " . $self->state($name)) unless ($got // '') eq 't';
    return ($got // '') eq 't';
}

sub state
{
    my ($self, $name) = @_;
    return $self->ask("SELECT concat_ws('|', state, reason, sqlstate) FROM saga.projections WHERE name = " . literal($name)) // 'no answer';
}

# missing|extra as the projector finds them at its snapshot: '0|0'.  While it
# is being started again there is no answer; asked again then.
sub compare
{
    my ($self, $name) = @_;
    my $end = time + $limit;
    while (1)
    {
        my ($rc, $out, $err) = (0, '', '');
        $rc = eval { $self->{node}->psql($self->{db}, 'SELECT missing, extra FROM saga.check_projection(' . literal($name) . ')',
            stdout => \$out, stderr => \$err, timeout => $limit) };
        return $out if defined $rc && $rc == 0 && $out ne '';
        return "no answer: $err" if time > $end;
        usleep(100_000);
    }
}

# The names that differ, as the projector finds: "name missing|extra (state)".
sub not_exact
{
    my ($self, @names) = @_;
    return unless @names;
    # all in one session; one by one only where that has not worked
    my $list = join ', ', map { literal($_) } @names;
    my $out = $self->ask_long("SELECT n, missing, extra FROM unnest(ARRAY[$list]) n, saga.check_projection(n)");
    my %got = map { my ($n, $rest) = split /\|/, $_, 2; ($n => $rest) } split /\n/, $out // '';
    my @wrong;
    for my $name (@names)
    {
        my $got = $got{$name} // $self->compare($name);
        push @wrong, "$name $got (" . $self->state($name) . ')' unless $got eq '0|0';
    }
    return @wrong;
}

# As ask(), with the time limit of the tests.
sub ask_long
{
    my ($self, $sql) = @_;
    my ($out, $err) = ('', '');
    my $rc = eval { $self->{node}->psql($self->{db}, $sql, stdout => \$out, stderr => \$err, on_error_stop => 1, timeout => 3 * $limit) };
    $self->{last_error} = $err;
    return defined $rc && $rc == 0 ? $out : undef;
}

# Compared by the projector at its own snapshot.
sub exact
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($self, $names, $test) = @_;
    my @wrong = $self->not_exact(ref $names ? @$names : ($names));
    is(join("\n", @wrong), '', $test);
    return !@wrong;
}

# When nobody writes: wait for them, and compare with their queries ourselves.
# Returns texts about the differences.
sub differences
{
    my ($self, @names) = @_;
    my (@wrong, $sql);
    for my $name (@names)
    {
        $self->{definition}{$name} //= [ split /\x1f/,
            $self->sql("SELECT search_path || E'\\x1f' || query FROM saga.projections WHERE name = " . literal($name)), 2 ];
        my ($path, $query) = @{ $self->{definition}{$name} };
        my $quoted = literal($name);
        $sql .= <<SQL;
RESET search_path;
SELECT $quoted || ' did not catch up' WHERE NOT saga.wait_for_projection($quoted, timeout => '$limit s');
SET search_path = $path;
WITH q AS MATERIALIZED ($query
), p AS MATERIALIZED (TABLE $name), d AS (
SELECT (SELECT count(*) FROM (TABLE q EXCEPT ALL TABLE p) x) AS missing,
       (SELECT count(*) FROM (TABLE p EXCEPT ALL TABLE q) x) AS extra)
SELECT format('%s: %s missing, %s too many', $quoted, missing, extra) FROM d WHERE missing > 0 OR extra > 0;
SQL
    }
    my $out = $self->ask_long($sql);
    return "error: $self->{last_error}" unless defined $out;
    return map { /^(\S+):? / ? "$_ (" . $self->state($1 =~ s/:$//r) . ')' : $_ } split /\n/, $out;
}

sub same
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($self, $names, $test) = @_;
    my @wrong = $self->differences(ref $names ? @$names : ($names));
    is(join("\n", @wrong), '', $test);
    return !@wrong;
}

sub projector
{
    my ($self) = @_;
    my ($pid) = $self->worker_pids('saga projector');
    return $pid;
}

# ---- for the tests that stop it at a place in a batch ----

# Sleep so long at each step of a batch; the step stands in pg_stat_activity.
sub delay
{
    my ($self, $ms) = @_;
    $self->sql("ALTER SYSTEM SET saga.test_delay = $ms", 'postgres');
    $self->sql('SELECT pg_reload_conf()', 'postgres');
    return;
}

sub at_step
{
    my ($self, $step, $seconds) = @_;
    my $pid;
    return until_true(sub {
        $pid = $self->ask("SELECT pid FROM pg_stat_activity WHERE backend_type = 'saga projector' AND query = '$step'", 'postgres');
        return $pid;
    }, $seconds) ? $pid : undef;
}

1;
