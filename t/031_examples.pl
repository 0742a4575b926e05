# The examples over HTTP services, each whole, with few sagas: their own
# invariants are the test.
use strict;
use warnings;
use File::Temp ();
use Test::More;

my $count = $ENV{EXAMPLE_COUNT} || 6;
for my $name (qw(fulfilment onboarding video approval))
{
    # clusters and journals are named alike in all of them
    my $work = File::Temp::tempdir(DIR => $ENV{SAGA_WORK}, CLEANUP => 1);
    local $ENV{SAGA_WORK} = $work;
    local $ENV{EXAMPLE_COUNT} = $count;
    my $output = `examples/$name/demo 2>&1`;
    is($?, 0, "$name: all invariants hold under all faults") or diag($output);
    for my $pid (glob "$work/*/postmaster.pid")
    {
        (my $dir = $pid) =~ s{/postmaster.pid$}{};
        system('pg_ctl', '-s', '-D', $dir, '-m', 'immediate', 'stop');
    }
}
done_testing();
