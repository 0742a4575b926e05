# 2,000 orders over four servers while processes and servers are killed with
# -9 at random moments.  At the end every saga has ended, and the four services
# agree exactly (examples/orders/check).
#
# SAGA_SEED repeats the choices of a run; SAGA_ORDERS and SAGA_KILLS change how
# much is done.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use POSIX ();
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;
use Time::HiRes qw(usleep);

my $seed = $ENV{SAGA_SEED} || (time ^ ($$ << 8)) & 0x7fffffff;
my $orders = $ENV{SAGA_ORDERS} || 2000;
my $min_kills = $ENV{SAGA_KILLS} || 30;
srand($seed);
diag("SAGA_SEED=$seed");

my $quiet = "log_statement = none\nmax_connections = 60\n";
my $c = SagaTest->coordinator('orders', conf => $quiet . "saga.executors = 2\n", bare => 1);
my %part = map { $_ => SagaTest->participant($_, conf => $quiet) } qw(payments inventory deliveries);
my %node = (orders => $c->{node}, map { $_ => $part{$_}{node} } keys %part);
my %connstr;
for my $name (keys %node)
{
    $node{$name}->safe_psql('postgres', "CREATE DATABASE $name");
    $connstr{$name} = $node{$name}->connstr($name);
}
$c->{db} = 'orders';
my @connstr = @connstr{qw(orders payments inventory deliveries)};
is(system('examples/orders/setup', @connstr), 0, 'the orders example is set up') or BAIL_OUT('no orders example');

# ---- clients: place orders, each once, whatever happens to the server ----

# A client that lost its connection goes on after the last order that it heard
# of; one that was placed and not heard of is placed a second time.
my $share = int(($orders + 3) / 4);
my @clients;
for my $i (0 .. 3)
{
    my $pid = fork // die "fork: $!";
    if (!$pid)
    {
        my $next = 1 + $i * $share;
        my $last = $i == 3 ? $orders : ($i + 1) * $share;
        my $test = getppid;
        while ($next <= $last)
        {
            # some at a time, so that orders come in for as long as the chaos lasts
            my $until = $next + 19 < $last ? $next + 19 : $last;
            my $heard = qx(psql -XAtq -v ON_ERROR_STOP=1 -v first=$next -v last=$until -d "$connstr{orders}" -f examples/orders/generate.sql);
            $next += () = $heard =~ /^\d+$/mg;
            POSIX::_exit(1) if getppid != $test;
            usleep(int(rand(1_500_000)));
        }
        POSIX::_exit(0);
    }
    push @clients, $pid;
}

# ---- chaos ----

sub pick { return $_[ int rand @_ ] }

sub query
{
    my ($name, $sql) = @_;
    return split /\n/, $c->ask($sql, $name, $node{$name}) // '';
}

sub kill_backend
{
    my ($name, $where) = @_;
    my @pids = query($name, "SELECT pid FROM pg_stat_activity WHERE $where AND pid <> pg_backend_pid()");
    return 0 unless @pids;
    return kill 9, pick(@pids);
}

sub kill_server
{
    my ($name) = @_;
    my $node = $node{$name};
    # the postmaster and some of its children, as when the machine goes
    my @pids = query($name, 'SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()');
    return crash_server($node, sub { kill 9, $_ for grep { rand() < 0.5 } @pids });
}

my %kills = (
    coordinator => sub { kill_backend('orders', "backend_type = 'saga coordinator'") },
    executor => sub { kill_backend('orders', "backend_type = 'saga executor'") },
    launcher => sub { kill_backend('orders', "backend_type = 'saga launcher'") },
    'participant backend' => sub { kill_backend(pick(keys %part), "usename LIKE '%\\_saga'") },
    'orders server' => sub { kill_server('orders') },
    'participant server' => sub { kill_server(pick(keys %part)) },
    'terminated coordinator' => sub {
        scalar query('orders', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'saga coordinator'");
    },
);
my @kinds = (sort(keys %kills), 'coordinator', 'executor', 'participant backend', 'participant backend');
my %done = map { $_ => 0 } keys %kills;
my ($kills, $busy) = (0, 0);
my $limit = time + 60 + 6 * $min_kills;
my $failed_restart = 0;
while (time < $limit)
{
    usleep(int(rand(1_200_000)));    # the random moment; nothing is asserted about it
    my $kind = $kills < @kinds ? $kinds[$kills] : pick(@kinds);
    # preferably while there is something to disturb
    my $flying;
    until_true(sub {
        ($flying) = query('orders', "SELECT count(*) FROM shop.orders WHERE status NOT IN ('completed', 'cancelled')");
        return $flying;
    }, 2);
    my $hit = $kills{$kind}->();
    $busy++ if $hit && $flying;
    $done{$kind}++ if $hit;
    $failed_restart++ if $kind =~ /server/ && !$hit;
    $kills++;
    my ($count) = query('orders', "SELECT count(*) FROM shop.orders WHERE status NOT IN ('completed', 'cancelled')");
    my ($placed) = query('orders', 'SELECT count(*) FROM shop.orders');
    last if $kills >= $min_kills && defined $placed && $placed >= $orders && ($count // 1) == 0;
    last if $kills >= $min_kills * 3;
}
cmp_ok($busy, '>', $min_kills / 3, 'kills hit sagas under way');
diag("$busy kills with sagas under way; " . join ', ', map { "$done{$_} x $_" } sort keys %done);
is($failed_restart, 0, 'every server came back');
cmp_ok($done{$_}, '>', 0, "killed: $_") for sort keys %done;

for my $pid (@clients)
{
    waitpid $pid, 0;
    is($?, 0, 'a client has placed its orders');
}

# ---- the end ----

my $all = $c->until_all_ended(180);
ok($all, 'every saga has ended');
if (!$all)
{
    diag($c->sql(<<'SQL'));
SELECT i.state, i.direction, l.* FROM saga.instances i JOIN saga.log l ON l.saga_id = i.id
 WHERE i.id = (SELECT min(id::text)::uuid FROM saga.instances
                WHERE state NOT IN ('completed', 'compensated', 'terminated')) ORDER BY seq
SQL
    diag($c->sql('SELECT * FROM saga.stuck LIMIT 5'));
    diag($c->sql('SELECT * FROM saga.stat_participants'));
    diag($c->sql('SELECT * FROM saga.stat_workers'));
}
cmp_ok($c->sql('SELECT count(*) FROM shop.orders'), '>=', $orders, "at least $orders orders were placed");
is($c->sql(q(SELECT count(*) > 0 FROM shop.orders WHERE status = 'completed')), 't', 'some completed');
is($c->sql(q(SELECT count(*) > 0 FROM shop.orders WHERE status = 'cancelled')), 't', 'some were cancelled');
is($c->sql(q(SELECT count(*) FROM saga.instances i FULL JOIN shop.orders o ON o.saga_id = i.id
              WHERE i.id IS NULL OR o.id IS NULL)), '0', 'an order for each saga and a saga for each order');
is($c->sql(q(SELECT count(*) FROM saga.instances WHERE state = 'terminated')), '0', 'none was terminated');

my $report = `examples/orders/check @{[map { "'" . s/'/'\\''/gr . "'" } @connstr]} 2>&1`;
is($?, 0, 'the four services agree');
diag($report) if $?;
note($report);

is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state');
is($c->sql(<<'SQL'), '0', 'the log of every saga is without holes');
SELECT count(*) FROM (SELECT FROM saga.log GROUP BY saga_id HAVING count(*) <> max(seq) OR min(seq) <> 1) s
SQL
is($c->sql(<<'SQL'), '0', 'every step is logged as done at most once for each operation');
SELECT count(*) FROM (SELECT FROM saga.log WHERE kind = 'done'
                       GROUP BY saga_id, step, operation HAVING count(*) > 1) s
SQL

# What the barriers say against what the services did: one effect for each key.
my %kind = (
    payments => [ 'payments.effect', 'take', 'refund' ],
    inventory => [ 'inventory.effect', 'reserve', 'release' ],
    deliveries => [ 'delivery.effect', 'arrange', 'cancel' ]);
for my $name (sort keys %kind)
{
    my ($table, $action, $undo) = @{ $kind{$name} };
    is($node{$name}->safe_psql($name, <<SQL), 't|t', "$name: as many effects as keys");
SELECT count(*) FILTER (WHERE op = 'a' AND status = 'done')
         = (SELECT count(*) FROM $table WHERE kind = '$action'),
       count(*) FILTER (WHERE op = 'u' AND status = 'done')
         >= (SELECT count(*) FROM $table WHERE kind = '$undo')
  FROM saga_participant.barrier
SQL
    is($node{$name}->safe_psql($name, <<SQL), '0', "$name: nothing undone that was refused");
SELECT count(*) FROM $table e
 WHERE e.kind = '$undo' AND NOT EXISTS
       (SELECT FROM $table a WHERE a.order_id = e.order_id AND a.kind = '$action')
SQL
}
for my $name (sort keys %node)
{
    $node{$name}->stop;
    unlike(slurp_file($node{$name}->logfile), qr/PANIC|TRAP|terminated by signal (?:6|11)\b/, "no crash of $name but those we made");
}
done_testing();
