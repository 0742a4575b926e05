# HTTP participants: requests, answers, outcomes, and services that misbehave.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use HttpService;
use Test::More;
use Time::HiRes qw(time);

my %canary = (bearer => "bearer-$password", key => "key-$password", basic => "basic-$password");
my $c = SagaTest->coordinator('coordinator', conf => "log_min_messages = debug1\n");
my $s = HttpService->new;

# A server for the service, and alice's mapping for it.
sub http_server
{
    my ($name, $url, %arg) = @_;
    my $options = join '', map {", $_ '$arg{$_}'"} grep { $_ ne 'mapping' } sort keys %arg;
    my $mapping = $arg{mapping} // "bearer '$canary{bearer}', header_x_api_key '$canary{key}'";
    $c->sql(<<SQL);
CREATE SERVER $name FOREIGN DATA WRAPPER saga_http OPTIONS (url '$url'$options);
GRANT USAGE ON FOREIGN SERVER $name TO alice;
SQL
    $c->sql("CREATE USER MAPPING FOR alice SERVER $name OPTIONS ($mapping)") if $mapping ne '';
    return;
}

http_server(svc => $s->url, pool_size => 1000, max_response_size => '100kB');

# A step before, so that one sees what is undone; the call; nothing behind it.
sub define_call
{
    my ($name, $server, $options) = @_;
    $options //= '';
    $c->alice(<<SQL);
SELECT saga.define('$name', input => 'mode text, what text',
  steps => ARRAY[
    saga.step('before', action => 'SELECT act(''before'', :what)',
              compensation => 'SELECT act(''undo before'', :what)'),
    saga.step('call', server => '$server', timeout => '1 s',
              retry => saga.retry_policy(max_attempts => 3, initial_interval => '10 ms'),
              action => 'POST /:mode/:what {"what": :what}',
              compensation => 'DELETE /ok/undo:{what}'$options)]);
SQL
    return;
}
define_call(call => 'svc');

sub input
{
    my ($mode, $what) = @_;
    return qq({"mode": "$mode", "what": "@{[$what // $mode]}"});
}

sub of_call
{
    my ($id, $column) = @_;
    return $c->sql("SELECT $column FROM saga.steps WHERE saga_id = '$id' AND step = 'call'");
}

sub attempts
{
    my ($id) = @_;
    return scalar grep { $_->{key} eq "$id/call/action" } $s->requests;
}

# ---- a request ----

my $id = $c->start('call', input('ok', 'first'), correlation => "'order 7'");
is($c->ended($id), 'completed|||', 'a saga with an HTTP step');
is($s->take_effects, 'POST first', 'one effect');
my ($request) = $s->requests;
my $headers = $request->{headers};
is($request->{url}, '/ok/first', 'the path');
is_deeply($request->{body}, { what => 'first' }, 'the body');
is($headers->{'content-type'}, 'application/json', 'header Content-Type');
is($headers->{accept}, 'application/json', 'Accept');
is($headers->{'user-agent'}, 'saga/1.0', 'User-Agent');
is($headers->{'idempotency-key'}, "$id/call/action", 'Idempotency-Key');
like($headers->{traceparent}, qr/^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/, 'traceparent');
is("@$headers{qw(saga-id saga-name saga-step saga-attempt saga-correlation)}", "$id call call 1 order%207",
    'what saga it is');
is($headers->{authorization}, "Bearer $canary{bearer}", 'credentials of the mapping');
is($headers->{'x-api-key'}, $canary{key}, 'its headers');
ok(!exists $headers->{expect}, 'no Expect');
ok(!exists $headers->{cookie}, 'no Cookie');
is(of_call($id, q(result->>'what' || ' ' || (result->>'http_status'))), 'first 201', 'its result');

$c->alice(<<'SQL');
SELECT saga.define('places', input => 'id text, q text, n bigint, price numeric, day date, tags text[], obj jsonb, gone text',
  steps => ARRAY[
    saga.step('put', server => 'svc', compensation => 'none',
      action => 'PUT /ok/a:{id}b/:n?q=:q&t=12:30&gone=:gone {"s": :id, "n": :n, "price": :price, "day": :day,
                 "tags": :tags, "obj": :obj, "inner": :obj.a.1, "gone": :gone, "path": :{obj.b}, "at": "12:30",
                 "text": "<:{id}> :n :{n}", "saga": :saga_id, "try": :attempt, "key": :idempotency_key, "deep": [[:n,:n]]}'),
    saga.step('got', server => 'svc', compensation => 'none',
      action => 'PATCH /array/x {"whole": :put.body.tags, "status": :put.http_status, "failed": :put.failed}'),
    saga.step('list', server => 'svc', compensation => 'none',
      action => 'DELETE /empty/y {"first": :got.0.sku, "all": :got, "status": :got.http_status}'),
    saga.step('sql', action => 'SELECT act(:list.http_status, (:got)::jsonb->1->>''sku'')')]);
SQL
my $nasty = qq(a/b?c#d%e&f=g "h" \\\\ \\n \x{fc}\x{20ac}\x{1f600} ..);
utf8::encode($nasty);
my $json = $nasty =~ s/"h"/\\"h\\"/r;
is($c->run('places', qq({"id": "$json", "q": "$json", "n": 9007199254740993, "price": 12.50, "day": "2026-02-03",
    "tags": ["x", "y\\"z"], "obj": {"a": [1, {"k": null}], "b": true}, "gone": null})), 'completed|||', 'values in all places');
my ($put, $got, $list) = (grep { $_->{what} !~ /^first/ } $s->requests)[ 0, 1, 2 ];
my $plain = JSON::PP::decode_json(qq(["$json"]))->[0];
my ($path, $query) = split /\?/, $put->{url}, 2;
my $decoded = $path =~ s/%([0-9A-F]{2})/chr hex $1/ger;
utf8::decode($decoded);
is($decoded, "/ok/a${plain}b/9007199254740993", 'a value in the path is encoded');
is(($path =~ tr|/||), 3, 'and adds no segment');
like($query, qr/^q=[A-Za-z0-9%._~-]+&t=12:30&gone=$/, 'one in the query');
is($put->{body}{s}, $plain, 'text in a body');
is($put->{body}{text}, "<$plain> :n 9007199254740993", 'and inside of a string');
is_deeply($put->{body}{tags}, [ 'x', 'y"z' ], 'an array');
is_deeply($put->{body}{obj}, { a => [ 1, { k => undef } ], b => JSON::PP::true() }, 'an object');
is_deeply([ @{ $put->{body} }{qw(inner gone path day try deep)} ],
    [ { k => undef }, undef, JSON::PP::true(), '2026-02-03', 1, $put->{body}{deep} ],
    'paths, null, a date, a system name');
like($put->{text}, qr/"n": 9007199254740993, "price": 12\.50,.*"deep": \[\[9007199254740993,9007199254740993\]\]/s, 'numbers keep their digits');
is_deeply($got->{body}, { whole => [ 'x', 'y"z' ], status => 201, failed => JSON::PP::false() }, 'a result in a later request');
is_deeply($list->{body}, { first => 'a', all => [ { sku => 'a' }, { sku => 'b' } ], status => 200 }, 'a result that is an array');
is($c->effects, 'before/first 204/b', 'a status in SQL; an answer without a body');
$c->sql('TRUNCATE app.effect');
$s->take_effects;

for my $bad (
    [ '..', 'two dots' ], [ '.', 'a dot' ], [ '', 'nothing' ], [ 'x' x 70000, 'too long a text' ])
{
    my $before = $s->requests;
    is($c->run('call', input('ok', $bad->[0])), 'compensated|declined|call|22023', "$bad->[1] as a segment of the path is refused");
    is(scalar($s->requests), $before, 'before anything is sent');
}
$c->sql('TRUNCATE app.effect');

# ---- refusals ----

for my $status (400, 402, 409, 410, 412, 422)
{
    is($c->run('call', input("status-$status")), "compensated|declined|call|H0$status", "$status is declined");
}
is($s->take_effects, '', 'what was declined is not undone');
for my $status (408, 425, 429, 500, 502, 503)
{
    $id = $c->start('call', input("status-$status"));
    is($c->ended($id), "compensated|declined|call|H0$status", "$status is transient");
    is(attempts($id), 3, 'and tried again');
}
is($s->take_effects, '', 'and nothing to be undone');
for my $status (401, 403, 404, 405, 418, 301)
{
    $id = $c->start('call', input("status-$status"));
    ok($c->until_state($id, 'stuck'), "$status is for the operator");
    is(attempts($id), 3, 'after three tries');
    is($c->sql("SELECT sqlstate FROM saga.stuck WHERE id = '$id'"), "H0$status", 'who is told the code');
    $c->sql("SELECT saga.cancel('$id', reason => 'seen')");
    is($c->ended($id), 'compensated|cancelled||', 'and can cancel it');
}
$id = $c->start('call', input('redirect'));
ok($c->until_state($id, 'stuck'), 'a redirect is not followed');
like($c->sql("SELECT error FROM saga.stuck WHERE id = '$id'"), qr/302.*redirects to .*stolen.*Hint: .*url/, 'and the operator told where it leads');
is($s->take_effects, '', 'nothing was called there');
$id = $c->start('call', input('status-404'));
ok($c->until_state($id, 'stuck'), 'not found');
like($c->sql("SELECT error FROM saga.stuck WHERE id = '$id'"),
    qr/server "svc" answered HTTP\/1.1 404 Not Found \(\{"error":"as you wish"\}\)/, 'the message has the status and the body');


$c->alice(<<'SQL');
SELECT saga.define('patterns', input => 'mode text', steps => ARRAY[
  saga.step('call', server => 'svc', action => 'POST /:mode/x', compensation => 'none',
    retry => saga.retry_policy(initial_interval => '10 ms', max_attempts => 2,
      decline_on => '{404,5xx}', retry_on => '{H0409}', stuck_on => '{503}'))]);
SQL
my $requests = $s->requests;
is($c->run('patterns', '{"mode": "status-404"}'), 'compensated|declined|call|H0404', 'decline_on a status');
is($c->run('patterns', '{"mode": "status-500"}'), 'compensated|declined|call|H0500', 'and a class of them');
is(scalar($s->requests), $requests + 2, 'without a second try');
is($c->run('patterns', '{"mode": "status-409"}'), 'compensated|declined|call|H0409', 'retry_on a code');
is(scalar($s->requests), $requests + 4, 'with one');
$id = $c->start('patterns', '{"mode": "status-503"}');
ok($c->until_state($id, 'stuck'), 'stuck_on a status wins over its class');

# ---- not now ----

for my $mode ('after-1', 'date-2')
{
    $id = $c->start('call', input("once-$mode"));
    is($c->ended($id), 'completed|||', "$mode is obeyed");
    is(attempts($id), 2, 'by a second try');
    cmp_ok($c->sql("SELECT extract(epoch FROM due - at) FROM saga.log WHERE saga_id = '$id' AND kind = 'failed'"), '>=', 0.9,
        'that came when it was asked for');
}
$s->take_effects;

# ---- no answer: asked again with the same key, one effect ----

my %once = map { $_ => $c->start('call', input("once-$_")) }
  qw(doneHang doneReset doneClose reset hang half garbage oldHttp headers drip endless huge-200000);
for my $mode (sort keys %once)
{
    is($c->ended($once{$mode}), 'completed|||', "$mode, then an answer");
    is(attempts($once{$mode}), 2, 'to the second request');
}
is(scalar(split / /, $s->take_effects) / 2, scalar(keys %once), 'one effect each');
is($c->sql("SELECT message FROM saga.log WHERE saga_id = '$once{'huge-200000'}' AND kind = 'failed'"),
    'the answer of server "svc" is too large', 'why, for one that is too large');
like($c->sql("SELECT message FROM saga.log WHERE saga_id = '$once{doneReset}' AND kind = 'failed'"),
    qr/^connection to server "svc" was lost before its answer/, 'for a connection that broke');
is($c->sql("SELECT count(*) FROM saga.log WHERE saga_id = '$once{drip}' AND outcome = 'unknown'"), 1, 'the outcome was unknown');

# ---- never an answer: it may have happened, so it is undone ----

$c->sql('TRUNCATE app.effect');
$id = $c->start('call', input('doneHang', 'silent'));
is($c->ended($id), 'compensated|declined|call|57014', 'a service that never answers');
is(attempts($id), 3, 'was asked three times');
is($s->take_effects, 'POST silent, DELETE undosilent', 'its effect is undone');
is($c->effects, 'before/silent undo before/silent', 'and the step before');
my ($undo) = grep { $_->{key} eq "$id/call/undo" } $s->requests;
is($undo->{method}, 'DELETE', 'the compensation has a key of its own');
is($c->run('call', input('endlessNo')), 'compensated|declined|call|H0409', 'a refusal with an endless body is a refusal');
is($s->take_effects, '', 'with nothing to undo');

# ---- while they all misbehave, others are served ----

$c->alice(<<'SQL');
SELECT saga.define('local', steps => ARRAY[saga.step('a', action => 'SELECT 1')]);
SQL
my @bad = map { $c->start('call', input($_)) } (qw(drip endless headers hang)) x 5;
my $slowest = 0;
for (1 .. 10)
{
    my $began = time;
    is($c->run($_ % 2 ? 'call' : 'local', $_ % 2 ? input('ok') : '{}'), 'completed|||', 'another saga') ;
    $slowest = time - $began if time - $began > $slowest;
}
cmp_ok($slowest, '<', 0.9, 'goes on in the meantime');
is(scalar(grep { $c->ended($_) !~ /^compensated/ } @bad), 0, 'and those end');
$s->take_effects;

# ---- results ----

$c->alice(<<'SQL');
SELECT saga.define('result', input => 'mode text', steps => ARRAY[
  saga.step('call', server => 'svc', action => 'POST /:mode/x', compensation => 'none'),
  saga.step('see', action => 'SELECT act((:call)::text, :call.http_status)')]);
SELECT saga.define('typed', input => 'mode text', steps => ARRAY[
  saga.step('call', server => 'svc', action => 'POST /:mode/x', compensation => 'none', returns => 'integer'),
  saga.step('see', action => 'SELECT act((:call + 1)::text, :call.http_status)')]);
SQL
for my $case (
    [ text => 'plain "text" ü/200' ], [ number => '42/200' ], [ empty => '204' ],
    [ array => '[{"sku": "a"}, {"sku": "b"}]/200' ], [ 'accepted' => qr|"what": "x"\}?.*/202| ],
    [ badJson => '200', qr/result is not usable: .*JSON/ ], [ badUtf8 => '200', qr/not usable: the body is not UTF-8/ ],
    [ zero => '200', qr/not usable/ ], [ rawZero => '200', qr/not usable/ ], [ deep => '200', qr/too large|not usable/ ],
    [ binary => '200', qr/not usable/ ], [ gzip => '200', qr/not usable/ ], [ cookie => qr/200/ ], [ close => qr/200/ ])
{
    my ($mode, $expected, $message) = @$case;
    $c->sql('TRUNCATE app.effect');
    $id = $c->start('result', qq({"mode": "$mode"}));
    if ($mode eq 'deep')
    {
        # longer than this server's answers may be
        ok($c->until("SELECT count(*) > 1 FROM saga.log WHERE saga_id = '$id' AND outcome = 'unknown'"), 'half a megabyte of brackets');
        $c->sql("SELECT saga.terminate('$id', reason => 'enough', force => true)");
        next;
    }
    is($c->ended($id), 'completed|||', "result: $mode");
    ref $expected ? like($c->effects, $expected, 'as it should be') : is($c->effects, $expected, 'as it should be');
    like($c->sql("SELECT message FROM saga.log WHERE saga_id = '$id' AND kind = 'done' AND step = 'call'"), $message, 'the log says why')
      if $message;
}
$c->sql('TRUNCATE app.effect');
is($c->run('typed', '{"mode": "number"}'), 'completed|||', 'a declared type');
is($c->effects, '43/200', 'is that of the body');
ok(!grep({ exists $_->{headers}{cookie} } $s->requests), 'cookies are not kept');
$s->take_effects;

# ---- verbs ----

$id = $c->start('call', input('doneStatus-404', 'doubt'));
ok($c->until_state($id, 'stuck'), 'a stuck call');
$c->sql("SELECT saga.skip_step('$id', 'call', reason => 'done by phone')");
is($c->ended($id), 'completed|||', 'one that is known not to have happened can be skipped');
$c->alice(<<'SQL');
SELECT saga.define('late', input => 'mode text', steps => ARRAY[
  saga.step('pay', action => 'SELECT 1', pivot => true),
  saga.step('call', server => 'svc', action => 'POST /:mode/late', timeout => '300 ms',
            retry => saga.retry_policy(initial_interval => '1 min'))]);
SQL
$id = $c->start('late', '{"mode": "doneHang"}');
ok($c->until("SELECT count(*) = 1 FROM saga.log WHERE saga_id = '$id' AND outcome = 'unknown'"), 'a call in doubt');
$c->sql("SELECT saga.skip_step('$id', 'call', reason => 'done by phone')");
ok($c->until("SELECT count(*) = 1 FROM saga.log WHERE saga_id = '$id' AND operation = 'claim' AND message LIKE '%cannot be asked%force%'"),
    'cannot be skipped like that');
$c->sql("SELECT saga.skip_step('$id', 'call', reason => 'done by phone', force => true)");
is($c->ended($id), 'completed|||', 'but with force');
$s->take_effects;

# ---- a compensation elsewhere ----

$c->alice(<<'SQL');
SELECT saga.define('elsewhere', steps => ARRAY[
  saga.step('call', server => 'svc', action => 'POST /doneHang/elsewhere', timeout => '300 ms',
            retry => saga.retry_policy(max_attempts => 1),
            compensation_server => '', compensation => 'SELECT act(''local undo'')')]);
SQL
$c->sql('TRUNCATE app.effect');
is($c->run('elsewhere', '{}'), 'compensated|declined|call|57014', 'a request that is undone by SQL');
is($c->effects, 'local undo', 'though nobody knows if it was done');
$s->take_effects;

# ---- answered later ----

$c->alice(<<'SQL');
SELECT saga.define('later', input => 'mode text', steps => ARRAY[
  saga.step('call', server => 'svc', callback => true, action => 'POST /:mode/later {"token": :callback_token}', compensation => 'none'),
  saga.step('see', action => 'SELECT act(''later'', :call.said)')]);
SQL
$c->sql('TRUNCATE app.effect');
my $seen = $s->requests;
$id = $c->start('later', '{"mode": "accepted"}');
ok($c->until("SELECT count(*) = 1 FROM saga.log WHERE saga_id = '$id' AND kind = 'accepted'"), '202 to a step with a callback');
my $accepted = ($s->requests)[$seen];
my $token = $accepted->{headers}{'saga-callback-token'};
is($accepted->{body}{token}, $token, 'has the token in its header and where the request says');
is($c->alice("SELECT saga.complete_step('$token', '{\"said\": \"yes\"}')"), 't', 'the answer comes later');
is($c->ended($id), 'completed|||', 'and ends the step');
is($c->effects, 'later/yes', 'with its result');
is($c->run('later', '{"mode": "echoOk"}'), 'completed|||', 'an answer at once is one as well');
$s->take_effects;

# ---- never twice ----

$c->alice(<<'SQL');
SELECT saga.define('once', input => 'mode text', steps => ARRAY[
  saga.step('call', server => 'svc', delivery => 'at_most_once', timeout => '500 ms', action => 'POST /:mode/mail',
            retry => saga.retry_policy(initial_interval => '10 ms', max_attempts => 3),
            compensation => 'POST /ok/sorry')]);
SQL
for my $mode (qw(doneHang doneReset reset garbage))
{
    $id = $c->start('once', qq({"mode": "$mode"}));
    like($c->ended($id), qr/^compensated\|declined\|call/, "at most once: $mode");
    is(attempts($id), 1, 'is not sent again');
}
is($s->take_effects, 'POST mail, POST sorry, POST mail, POST sorry, POST sorry, POST mail, POST sorry',
    'but undone, as it may have happened');
$id = $c->start('once', '{"mode": "status-503"}');
is($c->ended($id), 'compensated|declined|call|H0503', 'what is known not to have happened');
is(attempts($id), 3, 'is tried again');

# ---- addresses ----

http_server(named => 'http://localhost:' . $s->port);
define_call(named => 'named');
is($c->run('named', input('ok', 'named')), 'completed|||', 'localhost is called if it is written');
http_server(metadata => 'http://169.254.169.254');
define_call(metadata => 'metadata');
$id = $c->start('metadata', input('ok'));
ok($c->until_state($id, 'stuck'), 'an address of a cloud\'s metadata is not');
like($c->sql("SELECT sqlstate || error FROM saga.stuck WHERE id = '$id'"),
    qr/^42501server "metadata" may not call address 169\.254\.169\.254.*allow_private/, 'with the reason');
my ($alias) = grep { !/^localhost$/ } map { my ($address, @names) = split; ($address // '') =~ /^127\./ ? @names : () }
  grep { !/^#/ } split /\n/, PostgreSQL::Test::Utils::slurp_file('/etc/hosts');
SKIP:
{
    skip 'no other name of this machine in /etc/hosts', 3 unless $alias;
    http_server(alias => "http://$alias:" . $s->port);
    define_call(alias => 'alias');
    $id = $c->start('alias', input('ok', 'alias'));
    ok($c->until_state($id, 'stuck'), "a name that means this machine ($alias) is not called");
    $c->sql("ALTER SERVER alias OPTIONS (ADD allow_private 'true')");
    $c->sql("SELECT saga.retry_step('$id', 'call', reason => 'it is meant')");
    is($c->ended($id), 'completed|||', 'unless the server allows it');
    is($s->take_effects, 'POST named, POST alias', 'and so it was');
}
$s->take_effects;
my $n = 0;
for my $host ('169.254.169.254', '0.0.0.0', '224.0.0.1', '255.255.255.255', '[::]', '[fe80::1]', '[ff02::1]',
    '[::ffff:169.254.169.254]', '[64:ff9b::a9fe:a9fe]', '[2002:a9fe:a9fe::1]')
{
    my $name = 'special' . $n++;
    http_server($name => "http://$host", mapping => '');
    like($c->alice("SELECT found FROM saga.check_participant('$name') WHERE NOT ok"), qr/may not call/, "$host is not called");
}
my ($coordinator) = $c->worker_pids('saga coordinator');
my ($threads) = PostgreSQL::Test::Utils::slurp_file("/proc/$coordinator/status") =~ /^Threads:\s+(\d+)/m;
is($threads, 1, 'names are looked up without a thread');
for my $url ('http://2130706433', 'http://0x7f.1', 'http://0177.0.0.1', 'http://127.1', 'http://%31%32%37.0.0.1', 'ftp://x', 'file:///etc/passwd',
    'http://x/?q', 'http://x/#f', 'http://', 'x', 'http://a b', 'http://[fe80::1%25eth0]/', 'gopher://x', 'http://x:0', "http://x\ny")
{
    $c->refused('', "CREATE SERVER bad FOREIGN DATA WRAPPER saga_http OPTIONS (url '$url')", 'HV024', qr/invalid value/, "url $url is refused");
}
my $err = $c->refused('', "CREATE SERVER bad FOREIGN DATA WRAPPER saga_http OPTIONS (url 'http://u:$canary{basic}\@x')", 'HV024', qr/user mapping/, 'credentials in a url');
unlike($err, qr/DETAIL.*canary|DETAIL.*\Q$canary{basic}/, 'are not repeated');

# ---- who may set what ----

$c->refused('', "CREATE SERVER bad FOREIGN DATA WRAPPER saga_http OPTIONS (pool_size '3')", 'HV002', qr/"url" is required/, 'a server needs a url');
$c->refused('', "CREATE SERVER bad FOREIGN DATA WRAPPER saga_http OPTIONS (url 'http://x', bearer 'b')", 'HV00D', qr/invalid option/, 'credentials on a server');
$c->refused('', "ALTER SERVER svc OPTIONS (ADD rate 'fast')", 'HV024', qr/calls per second/, 'a wrong rate');
$c->refused('alice', "CREATE SERVER bad FOREIGN DATA WRAPPER saga_http OPTIONS (url 'http://x')", '42501', qr/permission denied/, 'USAGE of the wrapper is granted to nobody');
$c->sql('GRANT USAGE ON FOREIGN DATA WRAPPER saga_http TO alice');
$c->refused('alice', "CREATE SERVER bad FOREIGN DATA WRAPPER saga_http OPTIONS (url 'http://x', sslrootcert '/etc/passwd')", '42501', qr/sslrootcert/, 'files are a superuser\'s');
$c->sql('REVOKE USAGE ON FOREIGN DATA WRAPPER saga_http FROM alice');
for my $option ("header_host 'x'", "header_saga_id 'x'", "header_content_length '1'", "\"header_a b\" 'x'", "header_ 'x'")
{
    $c->refused('', "CREATE USER MAPPING FOR PUBLIC SERVER svc OPTIONS ($option)", 'HV00D', qr/header/, "mapping option $option");
}
$c->refused('', "CREATE USER MAPPING FOR PUBLIC SERVER svc OPTIONS (header_x E'a\\nSaga-Id: 1')", 'HV024', qr/one line/, 'two lines in a header');
$c->refused('', "CREATE USER MAPPING FOR PUBLIC SERVER svc OPTIONS (bearer 'a', \"user\" 'b')", 'HV024', qr/exclude/, 'two authorizations');

# ---- define ----

for my $bad (
    [ 'SELECT 1', qr/method/ ], [ 'FETCH /x', qr/method/ ], [ 'POST', qr/method/ ], [ 'POST http://evil/x', qr/begin with one/ ],
    [ 'POST //evil/x', qr/begin with one/ ], [ 'POST /x {', qr/not JSON/ ], [ 'POST /x {"a": :nothing}', qr/nothing/ ],
    [ 'POST /x {"a": :mode :what}', qr/not JSON/ ], [ 'POST /x {"a"::mode}', qr/not JSON/ ], [ 'POST /x hello', qr/not JSON/ ],
    [ 'GET /x {"a": 1}', qr/no body/ ], [ 'GET /a/../b', qr/segments/ ], [ 'GET /a/%2e%2e/b', qr/dot/ ], [ 'GET /%zz', qr/hexadecimal/ ],
    [ 'GET /a#b', qr/fragment/ ], [ "GET /\x{c3}\x{bc}", qr/percent-encoded/ ], [ 'GET /{x}', qr/percent-encoded/ ])
{
    my $action = $bad->[0] =~ s/'/''/gr;
    $c->refused('alice', "SELECT saga.define('bad', input => 'mode text, what text', steps => ARRAY[saga.step('s', server => 'svc', action => '$action', compensation => 'none')])",
        'SGD01', $bad->[1], "define: $bad->[0]");
}
$c->refused('alice', q{SELECT saga.define('bad', steps => ARRAY[saga.step('s', server => 'svc', action => 'GET /x', expect_rows => 1, compensation => 'none')])},
    'SGD01', qr/no rows/, 'define: rows of an answer');
$c->refused('alice', q{SELECT saga.define('bad', steps => ARRAY[saga.step('s', server => 'nowhere', action => 'GET /x', compensation => 'none')])},
    'SGD01', qr/nowhere/, 'define: no such server');
$c->refused('alice', q{SELECT saga.define('bad', steps => ARRAY[saga.step('s', action => 'GET /x', compensation => 'none')])},
    'SGD01', qr/syntax error/, 'define: a request without a server');
$c->refused('alice', q{SELECT saga.define('bad', steps => ARRAY[saga.step('s', server => 'svc', action => 'GET /x', compensation => 'none',
    retry => saga.retry_policy(decline_on => '{404,H0404}'))])}, 'SGD01', qr/twice/, 'define: one status twice');
like($c->alice(q{SELECT saga.render('call', 'call', input => '{"mode": "ok", "what": "a b"}')}),
    qr{"body": "\{\\"what\\": \\"a b\\"\}", "path": "/ok/a%20b", "method": "POST"}, 'render shows a request');

# ---- check_participant ----

is($c->alice("SELECT string_agg(\"check\", ' ') FROM saga.check_participant('svc') WHERE ok"),
    'server usage connection encryption credentials calls at once', 'a service that is there');
unlike($c->alice("SELECT string_agg(c::text, ' ') FROM saga.check_participant('svc') c"), qr/\Q$password/, 'shows no credentials');
http_server(nobody => 'http://127.0.0.1:1');
like($c->alice("SELECT found FROM saga.check_participant('nobody') WHERE NOT ok"), qr/could not connect/, 'one that is not');
http_server(nameless => 'http://nothing.invalid');
like($c->alice("SELECT found FROM saga.check_participant('nameless') WHERE NOT ok"), qr/could not resolve/, 'a name that means nothing');
like($c->alice("SELECT found FROM saga.check_participant('metadata') WHERE NOT ok"), qr/may not call/, 'an address that may not be called');
like($c->alice("SELECT saga.prepare_participant('svc')"), qr/nothing to install/, 'nothing has to be prepared');

# ---- TLS ----

my $tls = HttpService->new(protocol => 'https');
http_server(tls => $tls->url, sslrootcert => $tls->ca, mapping => "\"user\" 'u', password '$canary{basic}'");
define_call(tls => 'tls');
is($c->run('tls', input('ok', 'tls')), 'completed|||', 'over TLS');
my ($secure) = $tls->requests;
like($secure->{headers}{authorization}, qr/^Basic /, 'user and password');
http_server(untrusted => $tls->url);
define_call(untrusted => 'untrusted');
$id = $c->start('untrusted', input('ok'));
ok($c->until_state($id, 'stuck'), 'a certificate of an unknown authority');
like($c->sql("SELECT sqlstate || error FROM saga.stuck WHERE id = '$id'"), qr/^28000server "untrusted" could not prove who it is.*sslrootcert/, 'is refused');
http_server(other_name => 'https://127.0.0.1:' . $tls->port, sslrootcert => $tls->ca);
define_call(other_name => 'other_name');
$id = $c->start('other_name', input('ok'));
ok($c->until_state($id, 'stuck'), 'as is one of another name');
is(scalar(() = $tls->requests), 1, 'and nothing was sent there');
my $two = HttpService->new(protocol => 'http2');
http_server(two => $two->url, sslrootcert => $two->ca, pool_size => 50);
define_call(two => 'two');
my @ids = split /\n/, $c->alice(<<'SQL');
SELECT id FROM saga.start_many('two', (SELECT jsonb_agg(jsonb_build_object('mode', 'slow-100', 'what', 't' || n)) FROM generate_series(1, 100) n))
SQL
is(scalar(grep { $c->ended($_) ne 'completed|||' } @ids), 0, 'a hundred sagas over HTTP/2');
is(scalar(grep { $_->{version} eq '2.0' } $two->requests), 100, 'all requests were');
cmp_ok($c->sql("SELECT connects FROM saga.stat_participants WHERE name = 'two'"), '<=', 5, 'over few connections');

# ---- a service that crashes ----

@ids = split /\n/, $c->alice(<<'SQL');
SELECT id FROM saga.start_many('late', (SELECT jsonb_agg('{"mode": "slow-30000"}'::jsonb) FROM generate_series(1, 1)))
SQL
$c->alice(<<'SQL');
SELECT saga.define('crash', input => 'n int', steps => ARRAY[
  saga.step('call', server => 'svc', action => 'POST /once-slow-200/:n', compensation => 'DELETE /ok/undo:{n}',
            retry => saga.retry_policy(initial_interval => '50 ms', max_interval => '500 ms', max_attempts => 0))]);
SQL
$s->take_effects;
@ids = split /\n/, $c->alice(<<'SQL');
SELECT id FROM saga.start_many('crash', (SELECT jsonb_agg(jsonb_build_object('n', n)) FROM generate_series(1, 200) n))
SQL
until_true(sub { return scalar(() = $s->effects) > 20 });
$s->kill9;
ok($c->until("SELECT circuit = 'open' FROM saga.stat_participants WHERE name = 'svc'"), 'the service is killed: the circuit opens');
$s->start;
is(scalar(grep { $c->ended($_) ne 'completed|||' } @ids), 0, 'it comes back: all sagas complete');
my @effects = grep { $_->{key} =~ m{/call/action$} && $_->{what} =~ /^\d+$/ } $s->effects;
is(scalar(@effects), 200, 'with one effect each');
is($c->sql("SELECT circuit FROM saga.stat_participants WHERE name = 'svc'"), 'closed', 'the circuit is closed');

# ---- the coordinator's server crashes ----

@ids = split /\n/, $c->alice(<<'SQL');
SELECT id FROM saga.start_many('crash', (SELECT jsonb_agg(jsonb_build_object('n', n)) FROM generate_series(1001, 1200) n))
SQL
until_true(sub { return scalar(grep { $_->{what} =~ /^1\d\d\d$/ } $s->effects) > 20 });
ok(crash_server($c->{node}), 'the server crashes in the middle');
is(scalar(grep { $c->ended($_) ne 'completed|||' } @ids), 0, 'all sagas complete afterwards');
@effects = grep { $_->{what} =~ /^1\d\d\d$/ } $s->effects;
is(scalar(@effects), 200, 'with one effect each');

$c->alice(<<'SQL');
SELECT saga.define('once_crash', input => 'n int', steps => ARRAY[
  saga.step('call', server => 'svc', delivery => 'at_most_once', action => 'POST /slow-2000/o:{n}', compensation => 'POST /ok/undone:{n}')]);
SQL
@ids = split /\n/, $c->alice(<<'SQL');
SELECT id FROM saga.start_many('once_crash', (SELECT jsonb_agg(jsonb_build_object('n', n)) FROM generate_series(1, 20) n))
SQL
until_true(sub { return 20 == grep { $_->{what} =~ /^o\d+$/ } $s->effects });
ok(crash_server($c->{node}), 'the server crashes while calls wait that must not be sent twice');
is(scalar(grep { $c->ended($_) !~ /^compensated/ } @ids), 0, 'they are undone');
is(scalar(grep { $_->{what} =~ /^o\d+$/ } $s->requests), 20, 'and not sent again');
is(scalar(grep { $_->{what} =~ /^undone\d+$/ } $s->effects), 20, 'each of them');

# ---- many at once ----

$c->alice(<<'SQL');
SELECT saga.define('many', input => 'n int, mode text', steps => ARRAY[
  saga.step('call', server => 'svc', action => 'POST /:mode/m:{n}', compensation => 'none', timeout => '60 s')]);
SQL
my ($memory, @memory);
for my $round (1 .. 3)
{
    my $mode = $round == 1 ? 'slow-3000' : 'slow-300';
    @ids = split /\n/, $c->alice(<<SQL);
SELECT id FROM saga.start_many('many', (SELECT jsonb_agg(jsonb_build_object('n', n, 'mode', '$mode')) FROM generate_series(1, 1000) n))
SQL
    if ($round == 1)
    {
        until_true(sub { return $s->busy->{busy} >= 1000 });
        is($s->busy->{busy}, 1000, 'a thousand calls are in flight');
        is($c->sql("SELECT in_flight FROM saga.stat_participants WHERE name = 'svc'"), 1000, 'and counted');
    }
    is($c->sql("SELECT count(*) FROM unnest('{" . join(',', @ids) . "}'::uuid[]) i, saga.wait(i, '60 s') w WHERE w.state = 'completed'"),
        1000, 'they complete');
    my ($pid) = $c->worker_pids('saga coordinator');
    my ($rss) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+)/m;
    push @memory, $rss;
}
cmp_ok($memory[2], '<', $memory[1] * 1.1 + 1000, "memory is steady (@memory kB)");

# ---- a rate ----

http_server(slowly => $s->url, rate => 50);
$c->alice(<<'SQL');
SELECT saga.define('slowly', input => 'n int', steps => ARRAY[
  saga.step('call', server => 'slowly', action => 'POST /ok/rate:{n}', compensation => 'none')]);
SQL
my $began = time;
@ids = split /\n/, $c->alice(<<'SQL');
SELECT id FROM saga.start_many('slowly', (SELECT jsonb_agg(jsonb_build_object('n', n)) FROM generate_series(1, 60) n))
SQL
is(scalar(grep { $c->ended($_) ne 'completed|||' } @ids), 0, 'sixty calls at fifty a second');
cmp_ok(time - $began, '>=', 1, 'take a second');

# ---- secrets ----

$id = $c->start('call', input('echo'));
is($c->ended($id), 'compensated|declined|call|H0400', 'a service that repeats what it was told');
like($c->sql("SELECT message FROM saga.log WHERE saga_id = '$id' AND kind = 'failed'"), qr/Bearer \*+/, 'in its refusal');
$id = $c->start('call', input('echoOk'));
is($c->ended($id), 'completed|||', 'and in its answer');
my $all = $c->sql(<<'SQL');
SELECT string_agg(t::text, ' ') FROM (SELECT l::text FROM saga.log l UNION ALL SELECT i::text FROM saga.instances i
  UNION ALL SELECT s::text FROM saga.steps s UNION ALL SELECT p::text FROM saga.participants p
  UNION ALL SELECT p::text FROM saga.stat_participants p UNION ALL SELECT d::text FROM saga.definitions d
  UNION ALL SELECT a::text FROM pg_stat_activity a WHERE query !~ 'pg_stat_activity') t
SQL
like($all, qr/echoOk/, 'views show sagas');
unlike($all, qr/\Q$password/, 'and no credentials');
my $log = PostgreSQL::Test::Utils::slurp_file($c->{node}->logfile);
$log =~ s/^.*CREATE USER MAPPING.*?(?=^\d{4}-)//msg;
unlike($log =~ s/.*(?:OPTIONS|STATEMENT).*//gr, qr/\Q$password/, 'nor does the server\'s log');

is($c->sql('SELECT count(*) FROM saga.check_log()'), 0, 'logs fold to their states');
done_testing();
