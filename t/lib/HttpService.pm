# HttpService: a Node.js service that a coordinator calls (http_service.js).
#
#   my $s = HttpService->new;                 running, on a free port
#   my $s = HttpService->new(protocol => 'https');     or http2
#   $s->port, $s->url                         http://127.0.0.1:port, or for TLS
#                                             https://localhost:port
#   $s->ca                                    file with the authority's certificate
#   $s->kill9; $s->start                      a crash, and up again
#   $s->stop / $s->cont                       SIGSTOP, SIGCONT
#   $s->effects, $s->requests                 lists of hashes, oldest first
#   $s->busy                                  {busy} now, {most} ever
package HttpService;

use strict;
use warnings;
use HTTP::Tiny;
use JSON::PP;
use POSIX qw(WNOHANG);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils ();
use SagaTest;

my $directory = __FILE__ =~ s|[^/]*$||r;

sub new
{
    my ($class, %arg) = @_;
    my $self = bless {
        port => PostgreSQL::Test::Cluster::get_free_port(),
        dir => PostgreSQL::Test::Utils::tempdir(),
        protocol => $arg{protocol} // 'http',
    }, $class;
    $self->certify if $self->{protocol} ne 'http';
    $self->start;
    return $self;
}

sub port { return $_[0]{port} }
sub ca { return "$_[0]{dir}/ca.crt" }

sub url
{
    my ($self) = @_;
    return $self->{protocol} eq 'http' ? "http://127.0.0.1:$self->{port}"
      : "https://localhost:$self->{port}";
}

# An authority, and a certificate of it for localhost.
sub certify
{
    my ($self) = @_;
    my $dir = $self->{dir};
    open my $fh, '>', "$dir/names" or die "$dir/names: $!";
    print $fh "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n";
    close $fh;
    for my $command (
        "ecparam -name prime256v1 -genkey -noout -out $dir/ca.key",
        "req -x509 -new -key $dir/ca.key -days 10 -subj /CN=authority -out $dir/ca.crt",
        "ecparam -name prime256v1 -genkey -noout -out $dir/server.key",
        "req -new -key $dir/server.key -subj /CN=localhost -out $dir/server.csr",
        "x509 -req -in $dir/server.csr -CA $dir/ca.crt -CAkey $dir/ca.key -CAcreateserial"
        . " -days 10 -extfile $dir/names -out $dir/server.crt")
    {
        system("openssl $command 2>$dir/openssl.log") == 0
          or die "openssl $command failed: " . PostgreSQL::Test::Utils::slurp_file("$dir/openssl.log");
    }
    return;
}

sub start
{
    my ($self) = @_;
    my $log = "$self->{dir}/service.log";
    unlink $log;
    my $pid = fork // die "fork: $!";
    if ($pid == 0)
    {
        open STDOUT, '>', $log or POSIX::_exit(1);
        open STDERR, '>&', \*STDOUT or POSIX::_exit(1);
        open STDIN, '<', '/dev/null' or POSIX::_exit(1);
        exec 'node', "${directory}http_service.js", $self->{port}, $self->{dir}, $self->{protocol}
          or POSIX::_exit(1);
    }
    $self->{pid} = $pid;
    until_true(sub {
        die "the service has ended: " . PostgreSQL::Test::Utils::slurp_file($log) if waitpid($pid, WNOHANG) == $pid;
        return -e $log && PostgreSQL::Test::Utils::slurp_file($log) =~ /ready/;
    }) or die 'the service does not start';
    return $self;
}

sub kill9
{
    my ($self) = @_;
    kill KILL => $self->{pid};
    waitpid $self->{pid}, 0;
    delete $self->{pid};
    return;
}

sub stop { my ($self) = @_; kill STOP => $self->{pid}; return }
sub cont { my ($self) = @_; kill CONT => $self->{pid}; return }

sub DESTROY
{
    my ($self) = @_;
    local ($?, $!);
    $self->kill9 if $self->{pid};
    return;
}

sub _lines
{
    my ($self, $name) = @_;
    my $file = "$self->{dir}/$name";
    return -e $file ? map { decode_json($_) } split /\n/, PostgreSQL::Test::Utils::slurp_file($file) : ();
}

sub effects { return $_[0]->_lines('effects') }
sub requests { return $_[0]->_lines('requests') }

# Effects so far, as "METHOD what" in one line; then begins anew.
sub take_effects
{
    my ($self) = @_;
    my @all = $self->effects;
    my $from = $self->{taken} // 0;
    $self->{taken} = @all;
    return join ', ', map {"$_->{method} $_->{what}"} @all[ $from .. $#all ];
}

sub busy
{
    my ($self) = @_;
    my $answer = HTTP::Tiny->new->get("http://127.0.0.1:$self->{port}/busy");
    return decode_json($answer->{content});
}

1;
