# FaultProxy: a TCP proxy between a coordinator and a participant, with faults.
#
#   my $proxy = FaultProxy->new(port => $participant->port);
#   $proxy->port                 where to connect
#   $proxy->hold('marker')       what the client sends from here on is kept
#                                back on every connection on which the bytes
#                                "marker" are sent, also after the client has
#                                gone; other connections are not touched
#   $proxy->release              send what was kept back, to whoever is there
#   $proxy->swallow('marker', "COMMIT\0", $n)
#                                once "marker" was sent on a connection, drop
#                                the server's answer from the second bytes on
#                                and cut the client off; $n times (default 1)
#   $proxy->pass                 no faults for new bytes
#   $proxy->reset                cut all connections off, with RST
#   $proxy->refuse / accept      cut new connections off / no longer
#   $proxy->status               hash: connections, accepted, held (number of
#                                connections kept back), swallowed,
#                                late (what servers answered to released bytes)
#
# The proxy is a process of its own (this file, run as a program), steered by
# lines of JSON; it ends when its standard input does.
package FaultProxy;

use strict;
use warnings;
use IO::Handle;
use IO::Select;
use IO::Socket::INET;
use IPC::Open2;
use JSON::PP;
use Socket qw(SOL_SOCKET SO_LINGER);

sub new
{
    my ($class, %arg) = @_;
    my $pid = open2(my $out, my $in, $^X, __FILE__, $arg{port});
    my $self = bless { pid => $pid, in => $in, out => $out }, $class;
    $in->autoflush(1);
    $self->{port} = $self->_answer->{port};
    return $self;
}

sub port { return $_[0]{port} }
sub hold { my ($self, $marker) = @_; return $self->_ask(hold => $marker) }
sub release { return $_[0]->_ask('release') }
sub pass { return $_[0]->_ask('pass') }
sub reset { return $_[0]->_ask('reset') }
sub refuse { return $_[0]->_ask('refuse') }
sub accept { return $_[0]->_ask('accept') }
sub status { return $_[0]->_ask('status') }

sub swallow
{
    my ($self, $marker, $reply, $n) = @_;
    return $self->_ask('swallow', $marker, $reply, $n // 1);
}

sub _ask
{
    my ($self, @command) = @_;
    print { $self->{in} } encode_json(\@command), "\n";
    return $self->_answer;
}

sub _answer
{
    my ($self) = @_;
    my $line = readline($self->{out});
    die "the proxy is gone\n" unless defined $line;
    return decode_json($line);
}

sub DESTROY
{
    my ($self) = @_;
    local ($?, $!);
    close $self->{in} if $self->{in};
    waitpid($self->{pid}, 0) if $self->{pid};
}

# ---- the process ----

my ($listener, $select, %conns, %plan, %seen);

# One connection: client and server sockets (undef once gone), what was sent
# to the server and not yet looked through, and what is kept back.
sub open_connection
{
    my ($port) = @_;
    my $client = $listener->accept or return;
    my $server = $plan{refuse} ? undef
      : IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Proto => 'tcp');
    return cut($client) unless $server;
    $seen{accepted}++;
    my $conn = { client => $client, server => $server, sent => '', held => undef,
        marked => 0, released => 0 };
    for my $socket ($client, $server)
    {
        $socket->autoflush(1);
        $conns{ fileno $socket } = $conn;
        $select->add($socket);
    }
}

# Close with RST, so that the other end notices at once.
sub cut
{
    my ($socket) = @_;
    return unless $socket;
    delete $conns{ fileno $socket } if defined fileno $socket;
    $select->remove($socket);
    setsockopt($socket, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
    close $socket;
}

sub send_all
{
    my ($socket, $bytes) = @_;
    while (length $bytes)
    {
        my $n = syswrite($socket, $bytes);
        return 0 unless defined $n;
        substr($bytes, 0, $n, '');
    }
    return 1;
}

sub from_client
{
    my ($conn) = @_;
    my $bytes;
    if (!sysread($conn->{client}, $bytes, 65536))
    {
        cut(delete $conn->{client});
        # what is kept back outlives the client
        cut(delete $conn->{server}) unless defined $conn->{held};
        return;
    }
    $conn->{sent} .= $bytes;
    substr($conn->{sent}, 0, -65536, '') if length $conn->{sent} > 65536;
    if (defined $plan{hold} && index($conn->{sent}, $plan{hold}) >= 0)
    {
        $conn->{held} //= '';
    }
    if ($plan{swallow} && index($conn->{sent}, $plan{swallow}[0]) >= 0)
    {
        $conn->{marked} = 1;
    }
    if (defined $conn->{held})
    {
        $conn->{held} .= $bytes;
    }
    elsif (!send_all($conn->{server}, $bytes))
    {
        cut(delete $conn->{$_}) for qw(client server);
    }
}

sub from_server
{
    my ($conn) = @_;
    my $bytes;
    if (!sysread($conn->{server}, $bytes, 65536))
    {
        cut(delete $conn->{$_}) for qw(client server);
        return;
    }
    if ($conn->{released})
    {
        $seen{late} .= $bytes;
    }
    elsif ($conn->{marked} && $plan{swallow} && $plan{swallow}[2] > 0
        && (my $at = index($bytes, $plan{swallow}[1])) >= 0)
    {
        $plan{swallow}[2]--;
        $seen{swallowed}++;
        send_all($conn->{client}, substr($bytes, 0, $at)) if $conn->{client};
        cut(delete $conn->{$_}) for qw(client server);
        return;
    }
    if ($conn->{client} && !send_all($conn->{client}, $bytes))
    {
        cut(delete $conn->{$_}) for qw(client server);
    }
}

sub each_connection
{
    my ($code) = @_;
    my @all = values %conns;
    my %done;
    for my $conn (@all)
    {
        $code->($conn) unless $done{$conn}++;
    }
}

sub command
{
    my ($verb, @arg) = @_;
    if ($verb =~ /^(?:hold|swallow)$/)
    {
        # what was sent before does not count
        each_connection(sub { my ($conn) = @_; @$conn{qw(sent marked)} = ('', 0) });
        $plan{$verb} = $verb eq 'hold' ? $arg[0] : [@arg];
    }
    elsif ($verb eq 'pass') { delete @plan{qw(hold swallow)} }
    elsif ($verb eq 'refuse') { $plan{refuse} = 1 }
    elsif ($verb eq 'accept') { delete $plan{refuse} }
    elsif ($verb eq 'reset')
    {
        each_connection(sub { my ($conn) = @_; cut(delete $conn->{$_}) for qw(client server) });
    }
    elsif ($verb eq 'release')
    {
        delete $plan{hold};
        each_connection(sub {
            my ($conn) = @_;
            return unless defined $conn->{held};
            my $bytes = delete $conn->{held};
            $conn->{sent} = '';
            $conn->{released} = !$conn->{client};
            send_all($conn->{server}, $bytes) if $conn->{server};
        });
    }
    my ($open, $held) = (0, 0);
    each_connection(sub { my ($conn) = @_; $open++; $held++ if defined $conn->{held} });
    return { connections => $open, held => $held, map { $_ => $seen{$_} } keys %seen };
}

sub run
{
    my ($port) = @_;
    $SIG{PIPE} = 'IGNORE';
    STDOUT->autoflush(1);
    %seen = (accepted => 0, swallowed => 0, late => '');
    $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0,
        Listen => 128, Proto => 'tcp') or die "listen: $!";
    $select = IO::Select->new($listener, \*STDIN);
    print encode_json({ port => $listener->sockport }), "\n";
    while (1)
    {
        for my $socket ($select->can_read)
        {
            if ($socket == $listener) { open_connection($port); next }
            if ($socket == \*STDIN)
            {
                my $line = '';
                # one command a line, and the next only after our answer
                do { sysread(STDIN, my $c, 4096) or return; $line .= $c } until $line =~ /\n\z/;
                print encode_json(command(@{ decode_json($line) })), "\n";
                next;
            }
            my $fd = fileno $socket;
            my $conn = defined $fd ? $conns{$fd} : undef;
            next unless $conn;
            if ($conn->{client} && $socket == $conn->{client}) { from_client($conn) }
            elsif ($conn->{server} && $socket == $conn->{server}) { from_server($conn) }
        }
    }
}

run(@ARGV) unless caller;

1;
