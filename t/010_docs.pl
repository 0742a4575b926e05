# docs/reference.md: names everything public, and its examples run.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use Test::More;

# newer minor releases let the administrator say which libraries may decode
my $decoding = qx(postgres --describe-config 2>/dev/null) =~ /^output_plugin_libraries\t/m
  ? "output_plugin_libraries = 'pgoutput, test_decoding, saga'\n" : '';
my $c = SagaTest->coordinator('coordinator', bare => 1, conf => $decoding);
my $p = SagaTest->participant('participant');
my $port = $p->{node}->port;
my $page = PostgreSQL::Test::Utils::slurp_file('docs/reference.md');

# ---- the examples ----

my %script = (main => '', payments => '');
while ($page =~ /^```sql(?: at=(\w+))?\n(.*?)^```$/msg)
{
    $script{ $1 // 'main' } .= $2;
}
$script{main} =~ s/host 'pay\.internal'/host '127.0.0.1', port '$port'/;

$p->sql('CREATE DATABASE payments');
$p->sql($script{payments}, 'payments');
$c->{node}->safe_psql('postgres', 'CREATE DATABASE app');
my ($rc, $out, $err) = $c->{node}->psql('app', $script{main}, on_error_stop => 1);
is($rc, 0, 'every example runs') or diag($err);
ok($c->until(<<'SQL'), 'no example leaves a saga that is not done') or diag($c->sql(<<'SQL'));
SELECT count(*) = 0 FROM saga.instances WHERE ended_at IS NULL
SQL
SELECT i.name, i.state, l.seq, l.kind, l.step, l.sqlstate, l.message
  FROM saga.instances i JOIN saga.log l ON l.saga_id = i.id WHERE i.ended_at IS NULL ORDER BY i.id, l.seq
SQL
is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'their logs fold to their states');
is($c->sql("SELECT string_agg(DISTINCT state, ' ' ORDER BY state) FROM saga.instances"), 'compensated completed',
    'they end as the page says');

is($c->sql('SELECT status FROM shop.orders WHERE id = 4'), 'new', 'a saga cancelled before its time has done nothing');

# ---- names ----

(my $text = $page) =~ s/^```.*?^```$//msg;

sub named
{
    my ($what, $sql, $pattern) = @_;
    my @missing = grep { $text !~ $pattern->($_) } split /\n/, $c->sql($sql);
    is("@missing", '', "every $what is in the reference");
}

named('function', <<'SQL', sub { my $n = shift; qr/^###.*\bsaga\.\Q$n\E\(/m });
SELECT DISTINCT proname FROM pg_proc
 WHERE pronamespace = 'saga'::regnamespace AND proname !~ '_$'
   AND proname NOT IN ('node_in', 'node_out', 'saga_postgres_validator', 'saga_http_validator')
SQL
named('internal function', <<'SQL', sub { my $n = shift; qr/`saga\.\Q$n\E`/ });
SELECT DISTINCT proname FROM pg_proc
 WHERE pronamespace = 'saga'::regnamespace
   AND (proname ~ '_$' OR proname IN ('node_in', 'node_out', 'saga_postgres_validator', 'saga_http_validator'))
SQL
# the text of a section, from its heading to the next
sub section
{
    my $heading = shift;
    return $text =~ /^### (?:Type )?\Q$heading\E(?: [^\n]*)?\n(.*?)(?=^##|\z)/ms ? $1 : '';
}
my @missing;
for (split /\n/, $c->sql(<<'SQL'))
SELECT proname || ' ' || a FROM pg_proc, unnest(proargnames) a
 WHERE pronamespace = 'saga'::regnamespace
   AND proname IN ('define', 'step', 'retry_policy', 'start', 'create_projection')
SQL
{
    my ($function, $argument) = split / /;
    push @missing, $_ if section("saga.$function(…)") !~ /`\Q$argument\E`/;
}
is("@missing", '', 'every argument of the long functions is explained');

@missing = ();
for (split /\n/, $c->sql(<<'SQL'))
SELECT c.relname || ' ' || a.attname
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relnamespace = 'saga'::regnamespace AND c.relkind IN ('v', 'c')
 ORDER BY c.relname, a.attnum
SQL
{
    my ($relation, $column) = split / /;
    push @missing, $_ if section("saga.$relation") !~ /^\|[^|]*`\Q$column\E`/m;
}
is("@missing", '', 'every column of the views and types is explained');

named('setting', "SELECT name FROM pg_settings WHERE name LIKE 'saga.%'", sub { my $n = shift; qr/^\| `\Q$n\E` \|/m });
named('role', "SELECT rolname FROM pg_roles WHERE rolname LIKE 'saga\\_%'", sub { my $n = shift; qr/^\| `\Q$n\E` \|/m });
named('type', <<'SQL', sub { my $n = shift; qr/^### Type saga\.\Q$n\E$/m });
SELECT typname FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
 WHERE typnamespace = 'saga'::regnamespace AND typelem = 0 AND (c.oid IS NULL OR c.relkind = 'c')
   AND typtype IN ('b', 'c', 'd', 'e')
SQL

# the source tells the options of the wrapper and the codes
@missing = ();
my $server = PostgreSQL::Test::Utils::slurp_file('src/server.c');
my ($specs) = $server =~ /option_specs\[\] = \{(.*?)\{NULL/s;
push @missing, grep { $text !~ /`\Q$_\E`/ } $specs =~ /\{"(\w+)"/g;
is("@missing", '', 'every option of the wrapper is in the reference');
my $errors = PostgreSQL::Test::Utils::slurp_file('src/errors.h');
@missing = grep { $text !~ /`$_`/ } map { "SG$_" }
  map { join '', /'(.)'/g } $errors =~ /SAGA_ERRCODE\(('.', '.', '.')\)/g;
is("@missing", '', 'every code is in the reference');
is(scalar(() = $text =~ /^<a name="(?:answers|parameters|results|order|pivot)">/mg), 5, 'the anchors others link to');

$c->{node}->stop;
$p->{node}->stop;
done_testing();
