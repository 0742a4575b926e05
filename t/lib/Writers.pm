# Writers: random transactions on tables, by several sessions at once, for the
# tests of projections.
#
#   my $w = Writers->new(seed => 1, tables => { RandomQuery->new->tables });
#   $w->fill                          SQL: the first rows
#   $w->transaction                   SQL: one transaction
#   $w->start($node, 'app', 8)        eight sessions write until ...
#   $w->until_done(2000)              ... they have done so many together
#   $w->stop
#
# A transaction has single and multi-row inserts, updates (also of keys, to and
# from NULL, that change nothing, of rows that the same transaction wrote),
# deletes, savepoints released and rolled back, TRUNCATE of the tables that say
# so; it commits, synchronously or not, rolls back, or goes through PREPARE.
# Errors (a key that exists, a deadlock) only cost their own transaction.
#
# A table is { key => [names], rows => about so many, truncate => 1 if small (or
# the SQL that fills it again), weight => how often it is written (1), keep => 1
# if rarely deleted from, columns => [ [name, type, percent of NULLs], ... ] }; a type is one of those of literal()
# or a closure that is given this object and returns SQL.
package Writers;

use strict;
use warnings;
use File::Temp ();
use POSIX ();
use RandomQuery;
use Time::HiRes qw(time usleep);

sub new
{
    my ($class, %arg) = @_;
    my $self = bless {
        seed => $arg{seed} // 1,
        tables => $arg{tables},
        prepare => $arg{prepare} // 0,
        truncate => $arg{truncate} // 1,
        settings => $arg{settings} // '',
        pids => [],
    }, $class;
    for my $name (sort keys %{ $self->{tables} })
    {
        push @{ $self->{often} }, ($name) x ($self->{tables}{$name}{weight} // 1);
    }
    $self->seed($self->{seed});
    return $self;
}

sub seed
{
    my ($self, $seed) = @_;
    $self->{rng} = RandomQuery->new(seed => $seed * 7919 + 13);
    return;
}

sub int { return $_[0]{rng}->int($_[1]) }
sub pick { my $self = shift; return $_[ $self->int(scalar @_) ] }
sub chance { return $_[0]->int(100) < $_[1] }

sub literal
{
    my ($self, $type) = @_;
    return $type->($self) if ref $type;
    return $self->int($1) . '' if $type =~ /^key(\d+)$/;
    return $self->int(10) . '' if $type eq 'small';
    return $self->int(70) - 20 . '::bigint' if $type eq 'number';
    return $self->pick(qw('a' 'a' 'b' 'b' 'c' 'd' 'ab' 'abc' 'x' '')) . '::text' if $type eq 'word';
    return sprintf('%.2f::numeric(10,2)', ($self->int(4000) - 1000) / 100) if $type eq 'money';
    return $self->pick(qw('1' '1.0' '1.00' '2.5' '2.50' '7' '7.125' '0' '0.000' '-3.3' '-3.30' '12.75' '1' '2.5' '7'
        '100.001' 'NaN' 'Infinity')) . '::numeric' if $type eq 'scale';
    return sprintf "date '2024-%02d-%02d'", 1 + $self->int(12), 1 + $self->int(28) if $type eq 'date';
    return sprintf "timestamp '2024-%02d-%02d %02d:30'", 1 + $self->int(12), 1 + $self->int(28), $self->int(24) if $type eq 'time';
    return $self->pick(qw(true false)) if $type eq 'bool';
    return $self->pick(q('-0'::float8), map { "$_\::float8" } 0, 0.25, 0.5, 1, 2.75, 10, 16.5) if $type eq 'float';
    return $self->pick(qw('red' 'Red' 'RED' 'green' 'Green' 'blue' 'BLUE')) . '::text' if $type eq 'case';
    die $type;
}

sub column
{
    my ($self, $column) = @_;
    return 'NULL' if $column->[2] && $self->chance($column->[2]);
    return $self->literal($column->[1]);
}

sub row
{
    my ($self, $table) = @_;
    return '(' . join(', ', map { $self->column($_) } @{ $table->{columns} }) . ')';
}

sub names { return join ', ', map { $_->[0] } @{ $_[1]{columns} } }

# Rows to begin with.
sub fill
{
    my ($self) = @_;
    my $sql = '';
    for my $name (sort keys %{ $self->{tables} })
    {
        my $table = $self->{tables}{$name};
        $sql .= "INSERT INTO $name (" . $self->names($table) . ') VALUES '
          . join(', ', map { $self->row($table) } 1 .. $table->{rows}) . ($table->{key} && @{ $table->{key} } ? ' ON CONFLICT DO NOTHING' : '') . ";\n";
    }
    return $sql;
}

# Some rows of a table: a condition.
sub some_rows
{
    my ($self, $table) = @_;
    my ($first) = @{ $table->{columns} };
    return 'true' if $table->{rows} < 100 && $self->chance(1);
    my @key = grep { my $c = $_; grep { $_ eq $c->[0] } @{ $table->{key} } } @{ $table->{columns} };
    if (@key && $self->chance(60))
    {
        return join ' AND ', map { "$_->[0] = " . $self->literal($_->[1]) } @key;
    }
    my @small = grep { !ref $_->[1] && $_->[1] =~ /^(?:small|word|key\d+|case)$/ } @{ $table->{columns} };
    my $c = @key && $table->{rows} > 100 ? $key[0] : @small ? $self->pick(@small) : $first;
    return "$c->[0] IS NULL" if $c->[2] && $self->chance(10);
    return "$c->[0] = " . $self->literal($c->[1]) if $self->chance(75) || $table->{rows} > 100;
    return "$c->[0] IN (" . $self->literal($c->[1]) . ', ' . $self->literal($c->[1]) . ')';
}

sub statement
{
    my ($self) = @_;
    my $name = $self->pick(@{ $self->{often} });
    my $table = $self->{tables}{$name};
    my @columns = @{ $table->{columns} };
    my %is_key = map { $_ => 1 } @{ $table->{key} };
    my $kind = $self->int(100);
    # small tables that all the others refer to are rarely deleted from
    $kind = 0 if $table->{keep} && $kind >= 40 && $kind < 65 && $self->chance(85);
    if ($kind < 40)
    {
        my $conflict = '';
        if (%is_key)
        {
            my @other = grep { !$is_key{ $_->[0] } } @columns;
            $conflict = ' ON CONFLICT ' . (@other && $self->chance(40)
                ? '(' . join(', ', @{ $table->{key} }) . ') DO UPDATE SET ' . join(', ', map { "$_->[0] = excluded.$_->[0]" } @other)
                : 'DO NOTHING');
        }
        my @rows = $conflict =~ /UPDATE/ ? ($self->row($table)) : map { $self->row($table) } 1 .. $self->pick(1, 1, 2, 3, 6);
        # a table without a key would grow for ever
        return "INSERT INTO $name (" . $self->names($table) . ") SELECT * FROM (VALUES " . join(', ', @rows) . ') AS v (' . $self->names($table) . ')'
          . " WHERE (SELECT count(*) FROM $name) < " . 2 * $table->{rows} . ";\n" unless %is_key || grep { /NULL/ } @rows;
        return "INSERT INTO $name (" . $self->names($table) . ') VALUES ' . join(', ', @rows) . "$conflict;\n";
    }
    my $where = $self->some_rows($table);
    return "DELETE FROM $name WHERE $where;\n" if $kind < 55;
    if ($kind < 63 && !%is_key)
    {
        # the same rows once more
        my $names = $self->names($table);
        return "INSERT INTO $name ($names) SELECT $names FROM $name WHERE $where AND (SELECT count(*) FROM $name) < " . 2 * $table->{rows} . ";\n";
    }
    if ($kind < 65 && %is_key)
    {
        my ($k) = grep { $is_key{ $_->[0] } } @columns;
        my $new = $self->literal($k->[1]);
        my $old = join ' AND ', map { "$_->[0] = " . $self->literal($_->[1]) } grep { $is_key{ $_->[0] } } @columns;
        return "UPDATE $name SET $k->[0] = $new WHERE $old AND NOT EXISTS (SELECT FROM $name WHERE $k->[0] = $new);\n";
    }
    if ($kind < 68)
    {
        my $c = $self->pick(@columns);
        return "UPDATE $name SET $c->[0] = $c->[0] WHERE $where;\n";
    }
    if ($kind < 69 && $table->{truncate} && $self->{truncate})
    {
        return "TRUNCATE $name;\n$table->{truncate};\n" if $table->{truncate} ne '1';
        return "TRUNCATE $name;\n" . "INSERT INTO $name (" . $self->names($table) . ') VALUES '
          . join(', ', map { $self->row($table) } 1 .. 4) . (%is_key ? ' ON CONFLICT DO NOTHING' : '') . ";\n";
    }
    my @free = grep { !$is_key{ $_->[0] } } @columns;
    @free = @columns unless @free;
    my @set = map { $self->pick(@free) } 1 .. $self->pick(1, 1, 2);
    my %set = map { $_->[0] => $_ } @set;
    return "UPDATE $name SET " . join(', ', map { "$_ = " . $self->column($set{$_}) } sort keys %set) . " WHERE $where;\n";
}

sub transaction
{
    my ($self) = @_;
    return $self->statement if $self->chance(30);
    my $sql = "BEGIN;\n";
    $sql .= "SET LOCAL synchronous_commit = off;\n" if $self->chance(30);
    for (1 .. $self->pick(1, 2, 2, 3, 4, 8))
    {
        if ($self->chance(25))
        {
            my $inner = join '', map { $self->statement } 1 .. $self->pick(1, 2, 3);
            $inner .= "SAVEPOINT t;\n" . $self->statement . $self->pick("ROLLBACK TO t;\n", "RELEASE t;\n") if $self->chance(30);
            $sql .= "SAVEPOINT s;\n$inner" . $self->pick("ROLLBACK TO s;\n", "RELEASE s;\n");
            next;
        }
        $sql .= $self->statement;
    }
    if ($self->{prepare} && $self->chance(5))
    {
        my $gid = 'w' . $self->int(1_000_000_000) . '-' . $$;
        return "${sql}PREPARE TRANSACTION '$gid';\n" . $self->pick('COMMIT', 'COMMIT', 'ROLLBACK') . " PREPARED '$gid';\n";
    }
    return $sql . ($self->chance(90) ? "COMMIT;\n" : "ROLLBACK;\n");
}

# ---- sessions ----

# Each is a process that feeds psql some transactions at a time, and goes on
# whatever happens to the server.
sub start
{
    my ($self, $node, $db, $number, %arg) = @_;
    my $connstr = ref $node ? $node->connstr($db) : $node;
    my $dir = $self->{dir} = File::Temp::tempdir();
    my $test = $$;
    my $pause = $arg{pause} // 0;
    for my $i (1 .. $number)
    {
        my $pid = fork // die "fork: $!";
        if (!$pid)
        {
            $self->seed($self->{seed} * 1000 + $i);
            my $done = 0;
            while (!-e "$dir/stop" && getppid == $test)
            {
                my $some = $arg{chunk} // 10;
                my $sql = $self->{settings} . join '', map { $self->transaction } 1 .. $some;
                my $ok = 0;
                if (open my $psql, '|-', qq(psql -XAtq -d "$connstr" >/dev/null 2>>$dir/errors-$i))
                {
                    local $SIG{PIPE} = 'IGNORE';
                    print $psql $sql;
                    $ok = close $psql;
                }
                $done += $some if $ok;
                open my $fh, '>', "$dir/done-$i.new" or last;
                print $fh $done;
                close $fh;
                rename "$dir/done-$i.new", "$dir/done-$i";
                usleep($ok ? $pause : 100_000);
            }
            POSIX::_exit(0);
        }
        push @{ $self->{pids} }, $pid;
    }
    return $self;
}

# Transactions done by all of them together
sub done
{
    my ($self) = @_;
    my $sum = 0;
    for my $file (glob "$self->{dir}/done-*[0-9]")
    {
        open my $fh, '<', $file or next;
        $sum += <$fh> // 0;
        close $fh;
    }
    return $sum;
}

sub until_done
{
    my ($self, $number, $seconds) = @_;
    my $end = time + ($seconds // 300);
    while ($self->done < $number)
    {
        return 0 if time > $end;
        usleep(50_000);
    }
    return 1;
}

sub stop
{
    my ($self) = @_;
    return unless @{ $self->{pids} };
    open my $fh, '>', "$self->{dir}/stop" or die "stop: $!";
    close $fh;
    waitpid $_, 0 for @{ $self->{pids} };
    $self->{pids} = [];
    return $self->done;
}

# Errors that are no part of the game.
sub strange_errors
{
    my ($self) = @_;
    my @strange;
    for my $file (glob "$self->{dir}/errors-*")
    {
        open my $fh, '<', $file or next;
        while (<$fh>)
        {
            push @strange, $_ if /ERROR:/
              && !/duplicate key|deadlock detected|current transaction is aborted|could not serialize|savepoint "|concurrently|moved to another partition|prepared transaction with identifier/;
        }
        close $fh;
    }
    return @strange;
}

sub DESTROY
{
    my ($self) = @_;
    local ($?, $!);
    $self->stop if @{ $self->{pids} } && !$self->{child};
    return;
}

1;
