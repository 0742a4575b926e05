# RandomQuery: random queries over a few small tables, for the tests of
# projections.
#
#   my $rq = RandomQuery->new(seed => 7, outer => 50);   half the joins outer, and more of them
#   $rq->schema;                     SQL: schema "rq", its tables and some rows
#   my ($sql, $kind) = $rq->query;   the next query
#
# A query is valid, names all its output columns (c1, c2, ...), costs little,
# and is deterministic as a bag: LIMIT, DISTINCT ON and row numbers stand over
# a total order, aggregates that depend on the order of their input have one,
# floats are binary fractions that add up exactly.  It uses no setting
# (TimeZone, DateStyle, ...) and no volatile function.
#
# The tables have NULLs, duplicates, values that are equal and not the same
# (1.0 and 1.00, 'a' and 'A' under a nondeterministic collation, 0 and -0), no
# key (dup), a key of two columns (pair), partitions (part), a view over a view.
package RandomQuery;

use strict;
use warnings;

# Column types: int, big, num (declared scale or not), text, ci, date, ts,
# bool, flt (adds up exactly), fx (does not: never summed), arr (integer[]).
my %table = (
    item => [ [ id => 'int' ], [ k => 'int' ], [ g => 'text' ], [ n => 'num' ], [ d => 'date' ], [ b => 'bool' ] ],
    fact => [ [ id => 'int' ], [ item_id => 'int' ], [ k => 'int' ], [ s => 'text' ], [ v => 'big' ], [ f => 'flt' ] ],
    dup => [ [ k => 'int' ], [ s => 'text' ], [ m => 'num' ] ],
    pair => [ [ x => 'int' ], [ y => 'int' ], [ g => 'text' ], [ m => 'num' ], [ ci => 'ci' ] ],
    part => [ [ id => 'int' ], [ k => 'int' ], [ s => 'text' ], [ n => 'num' ], [ at => 'ts' ] ],
    part_low => [ [ id => 'int' ], [ k => 'int' ], [ s => 'text' ], [ n => 'num' ], [ at => 'ts' ] ],
    tiny => [ [ k => 'int' ], [ name => 'text' ] ],
    v_fact => [ [ id => 'int' ], [ g => 'text' ], [ v => 'big' ], [ s => 'text' ] ],
);
my @often = qw(item item item fact fact fact dup dup pair pair part part tiny tiny v_fact part_low);

sub new
{
    my ($class, %arg) = @_;
    my $self = bless { state => 0, counter => 0, schema => $arg{schema} // 'rq', outer => $arg{outer} // 0 }, $class;
    $self->seed($arg{seed} // 1);
    return $self;
}

sub seed
{
    my ($self, $seed) = @_;
    $self->{state} = ($seed ^ 25214903917) & 281474976710655;
    $self->{counter} = 0;
    $self->int(10) for 1 .. 5;
    return;
}

# 0 .. n-1; the same sequence for a seed on every machine
sub int
{
    my ($self, $n) = @_;
    {
        use integer;
        $self->{state} = ($self->{state} * 25214903917 + 11) & 281474976710655;
    }
    return ($self->{state} >> 17) % $n;
}

sub pick { my $self = shift; return $_[ $self->int(scalar @_) ] }
sub chance { return $_[0]->int(100) < $_[1] }
sub alias { return $_[1] . ++$_[0]{counter} }

# Random elements of a list, in their order.
sub some
{
    my ($self, $n, @from) = @_;
    my %take;
    $n = @from if $n > @from;
    $take{ $self->int(scalar @from) } = 1 while keys %take < $n;
    return @from[ sort { $a <=> $b } keys %take ];
}

# ---- tables ----

sub schema
{
    my ($self) = @_;
    my $s = $self->{schema};
    return <<SQL;
CREATE SCHEMA $s;
SET search_path = $s;
CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE item (id int PRIMARY KEY, k int, g text, n numeric(10,2), d date, b boolean);
CREATE TABLE fact (id int PRIMARY KEY, item_id int, k int, s text, v bigint, f float8);
CREATE TABLE dup (k int, s text, m numeric);
CREATE TABLE pair (x int, y int, g text, m numeric, ci text COLLATE nocase, PRIMARY KEY (x, y));
CREATE TABLE part (id int NOT NULL, k int, s text, n numeric(10,2), at timestamp) PARTITION BY RANGE (id);
CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (0) TO (25);
CREATE TABLE part_mid PARTITION OF part FOR VALUES FROM (25) TO (60) PARTITION BY LIST (s);
CREATE TABLE part_mid_a PARTITION OF part_mid FOR VALUES IN ('a', 'b', NULL);
CREATE TABLE part_mid_z PARTITION OF part_mid DEFAULT;
CREATE TABLE part_rest PARTITION OF part DEFAULT;
CREATE TABLE tiny (k int PRIMARY KEY, name text);
CREATE VIEW v_item AS SELECT id, g, k FROM item WHERE b IS NOT FALSE;
CREATE VIEW v_fact AS SELECT fact.id, v_item.g, fact.v, fact.s FROM fact JOIN v_item ON v_item.id = fact.item_id;
CREATE INDEX ON item (k);
CREATE INDEX ON fact (item_id);
CREATE INDEX ON fact (k);
CREATE INDEX ON dup (k);
CREATE INDEX ON part (id);
ALTER TABLE item REPLICA IDENTITY FULL;
ALTER TABLE fact REPLICA IDENTITY FULL;
ALTER TABLE dup REPLICA IDENTITY FULL;
ALTER TABLE pair REPLICA IDENTITY FULL;
ALTER TABLE part REPLICA IDENTITY FULL;
ALTER TABLE part_low REPLICA IDENTITY FULL;
ALTER TABLE part_mid REPLICA IDENTITY FULL;
ALTER TABLE part_mid_a REPLICA IDENTITY FULL;
ALTER TABLE part_mid_z REPLICA IDENTITY FULL;
ALTER TABLE part_rest REPLICA IDENTITY FULL;
ALTER TABLE tiny REPLICA IDENTITY FULL;
SQL
}

# For Writers: columns with their type and how often they are NULL (percent;
# undef: never), key columns, number of different keys, wanted number of rows.
sub tables
{
    my ($self) = @_;
    my $s = $self->{schema};
    return (
        "$s.item" => { key => ['id'], rows => 60, columns => [
            [ id => 'key60' ], [ k => 'small', 10 ], [ g => 'word', 10 ], [ n => 'money', 10 ], [ d => 'date', 10 ], [ b => 'bool', 20 ] ] },
        "$s.fact" => { key => ['id'], rows => 80, columns => [
            [ id => 'key90' ], [ item_id => 'key60', 10 ], [ k => 'small', 10 ], [ s => 'word', 10 ], [ v => 'number', 10 ], [ f => 'float', 10 ] ] },
        "$s.dup" => { key => [], rows => 60, columns => [
            [ k => 'small', 15 ], [ s => 'word', 15 ], [ m => 'scale', 15 ] ] },
        "$s.pair" => { key => [ 'x', 'y' ], rows => 50, columns => [
            [ x => 'small' ], [ y => 'small' ], [ g => 'word', 10 ], [ m => 'scale', 10 ], [ ci => 'case', 10 ] ] },
        "$s.part" => { key => [], rows => 60, columns => [
            [ id => 'key90' ], [ k => 'small', 10 ], [ s => 'word', 10 ], [ n => 'money', 10 ], [ at => 'time', 10 ] ] },
        "$s.tiny" => { key => ['k'], rows => 8, truncate => 1, columns => [
            [ k => 'small' ], [ name => 'word', 10 ] ] },
    );
}

# ---- expressions ----

# A scope is a list of [ SQL of a column, its type ].
sub columns_of
{
    my ($self, $scope, @types) = @_;
    my %want = map { $_ => 1 } @types;
    return grep { $want{ $_->[1] } } @$scope;
}

sub literal
{
    my ($self, $type) = @_;
    if ($type =~ /^(?:int|big|num)$/)
    {
        my $n = $type eq 'num' ? ($self->int(4000) - 1000) / 100 : $self->int(14) - 2;
        return $n < 0 ? "($n)" : "$n";
    }
    return $self->pick(qw('a' 'b' 'c' 'd' 'ab' '')) if $type eq 'text';
    return '(' . $self->pick(qw('red' 'GREEN' 'Blue')) . "::text COLLATE $self->{schema}.nocase)" if $type eq 'ci';
    return sprintf "date '2024-%02d-%02d'", 1 + $self->int(12), 1 + $self->int(28) if $type eq 'date';
    return sprintf "timestamp '2024-%02d-%02d %02d:00'", 1 + $self->int(12), 1 + $self->int(28), $self->int(24) if $type eq 'ts';
    return $self->pick(qw(true false)) if $type eq 'bool';
    return '(' . ($self->int(80) - 20) / 4 . ')::float8' if $type eq 'flt' || $type eq 'fx';
    return "'{1,2}'::int[]" if $type eq 'arr';
    die $type;
}

# An expression of a type; a column where there is one.
sub value
{
    my ($self, $scope, $type, $depth) = @_;
    $depth //= 2;
    my @col = $self->columns_of($scope, $type);
    if (@col && ($depth <= 0 || $self->chance(65)))
    {
        return $self->pick(@col)->[0];
    }
    return $self->literal($type) if $depth <= 0 || $self->chance(12);
    my $v = sub { $self->value($scope, $_[0], $depth - 1) };
    if ($self->chance(15))
    {
        return $self->pick(
            sub { 'coalesce(' . $v->($type) . ', ' . $self->literal($type) . ')' },
            sub { 'nullif(' . $v->($type) . ', ' . $self->literal($type) . ')' },
            sub {
                'CASE WHEN ' . $self->predicate($scope, $depth - 1, 0) . ' THEN ' . $v->($type)
                  . $self->pick(' ELSE ' . $self->literal($type), '') . ' END';
            })->();
    }
    if ($type eq 'int')
    {
        return $self->pick(
            sub { '(' . $v->('int') . $self->pick(' + ', ' - ') . $v->('int') . ')' },
            sub { '(' . $v->('int') . ' % ' . $self->pick(2, 3, 5) . ')' },
            sub { '(' . $v->('int') . ' / ' . $self->pick(2, 3) . ')' },
            sub { 'abs(' . $v->('int') . ')' },
            sub { 'length(' . $v->('text') . ')' },
            sub { '(-' . $v->('int') . ')' })->();
    }
    if ($type eq 'big')
    {
        return $self->pick(
            sub { '(' . $v->('int') . ')::bigint' },
            sub { '(' . $v->('big') . ' + ' . $v->('int') . ')' },
            sub { '(' . $v->('big') . ' * 2)' })->();
    }
    if ($type eq 'num')
    {
        return $self->pick(
            sub { '(' . $v->('int') . ')::numeric' },
            sub { '(' . $v->('num') . $self->pick(' + ', ' - ', ' * ') . $v->('num') . ')' },
            sub { 'round(' . $v->('num') . ', 1)' },
            sub { '(' . $v->('num') . ' / (1 + abs(' . $v->('int') . ')))' },
            sub { 'extract(month FROM ' . $v->('date') . ')' })->();
    }
    if ($type eq 'text')
    {
        return $self->pick(
            sub { 'upper(' . $v->('text') . ')' },
            sub { '(' . $v->('text') . q( || '-' || ) . $v->('text') . ')' },
            sub { 'substr(' . $v->('text') . ', 1, 1)' },
            sub { '(' . $v->('int') . ')::text' },
            sub { 'lower(' . $v->('text') . ')' })->();
    }
    if ($type eq 'date')
    {
        return $self->pick(
            sub { '(' . $v->('date') . ' + ' . $self->int(40) . ')' },
            sub { 'greatest(' . $v->('date') . ', ' . $self->literal('date') . ')' })->();
    }
    if ($type eq 'ts')
    {
        return $self->pick(
            sub { q[date_trunc('month', ] . $v->('ts') . ')' },
            sub { '(' . $v->('ts') . q[ + interval '36 hours')] },
            sub { '(' . $v->('date') . ')::timestamp' })->();
    }
    return $self->predicate($scope, $depth - 1, 0) if $type eq 'bool';
    return '(' . $v->('flt') . $self->pick(' * 2', ' + 0.25', ' / 2') . ')' if $type eq 'flt';
    return $self->literal($type);
}

my @comparable = qw(int int int big num text text date ts flt ci);

# A condition; subqueries only where $sub says so.
sub predicate
{
    my ($self, $scope, $depth, $sub) = @_;
    $sub //= 0;
    if ($depth > 0 && $self->chance(25))
    {
        return '(' . $self->predicate($scope, $depth - 1, $sub) . $self->pick(' AND ', ' OR ', ' OR ')
          . $self->predicate($scope, $depth - 1, $sub) . ')';
    }
    return 'NOT ' . '(' . $self->predicate($scope, $depth - 1, $sub) . ')' if $depth > 0 && $self->chance(10);
    return $self->sub_predicate($scope) if $sub && $self->chance($sub);
    my %there = map { $_->[1] => 1 } @$scope;
    my @types = grep { $there{$_} } @comparable;
    @types = ('int') unless @types;
    my $type = $self->pick(@types);
    # nothing but columns under a collation of their own
    my $d = $type eq 'ci' ? 0 : $depth > 0 ? 1 : 0;
    my $v = $self->value($scope, $type, $d);
    return $self->pick(
        sub { "$v " . $self->pick('=', '<>', '<', '>', '<=', '>=') . ' ' . $self->value($scope, $type, $d) },
        sub { "$v " . $self->pick('=', '<', '>', '<=', '>=', '<>', '<>') . ' ' . $self->literal($type) },
        sub { "$v " . $self->pick('<>', '<=', '>=') . ' ' . $self->literal($type) },
        sub { "$v IS " . $self->pick('NULL', 'NOT NULL', 'NOT NULL') },
        sub { "$v IS " . $self->pick('', 'NOT ') . 'DISTINCT FROM ' . $self->value($scope, $type, 0) },
        sub { "$v " . $self->pick('', 'NOT ') . 'IN (' . join(', ', map { $self->literal($type) } 1 .. 3) . ')' },
        sub { "$v BETWEEN " . $self->literal($type) . ' AND ' . $self->literal($type) },
        sub { my @b = $self->columns_of($scope, 'bool'); @b ? $self->pick(@b)->[0] . $self->pick('', ' IS TRUE', ' IS NOT FALSE', ' IS UNKNOWN') : "$v IS NOT NULL" },
        sub { $self->value($scope, 'text', 0) . $self->pick(' ', ' NOT ') . 'LIKE ' . $self->pick(q('a%'), q('%b%'), q('_')) })->();
}

# EXISTS, IN, ANY, ALL, or a comparison with a scalar subquery, correlated or not
sub sub_predicate
{
    my ($self, $outer) = @_;
    my ($from, $scope) = $self->table;
    my @types = grep { my $t = $_; (grep { $_->[1] eq $t } @$scope) && grep { $_->[1] eq $t } @$outer }
      qw(int int text num big date);
    my $type = @types ? $self->pick(@types) : 'int';
    my $out = $self->value($outer, $type, 0);
    my $in = $self->value($scope, $type, 0);
    my $more = $self->chance(50) ? ' AND ' . $self->predicate($scope, 1) : '';
    my $cond = $self->chance(60) ? $self->predicate($scope, 1) : 'true';
    my $corr = $self->chance(50) ? ' AND ' . $self->value($scope, 'int', 0) . ' = ' . $self->value($outer, 'int', 0) : '';
    return $self->pick(
        sub { $self->pick('', 'NOT ') . "EXISTS (SELECT 1 FROM $from WHERE $in = $out$more)" },
        sub { $self->pick('', 'NOT ') . "EXISTS (SELECT * FROM $from WHERE $in " . $self->pick('=', '<', '>') . " $out$corr)" },
        sub { "$out " . $self->pick('', 'NOT ') . "IN (SELECT $in FROM $from WHERE $cond$corr)" },
        sub { "$out " . $self->pick('=', '<', '>=') . $self->pick(' ANY ', ' ALL ') . "(SELECT $in FROM $from WHERE $cond$corr)" },
        sub { "$out " . $self->pick('=', '<', '>', '<>') . ' (SELECT ' . $self->pick('min', 'max') . "($in) FROM $from WHERE $cond$corr)" },
        sub {
            my $n = $self->value($outer, 'int', 0);
            "$n " . $self->pick('=', '<', '>') . " (SELECT count(*) FROM $from WHERE $in = $out$more)";
        })->();
}

# ---- FROM ----

# (SQL of a table under a new alias, its scope)
sub table
{
    my ($self, $name) = @_;
    $name //= $self->pick(@often);
    my $alias = $self->alias('t');
    return ("$self->{schema}.$name $alias", [ map { [ "$alias.$_->[0]", $_->[1] ] } @{ $table{$name} } ]);
}

# a table, or a subquery
sub from_item
{
    my ($self, $depth) = @_;
    if ($depth > 0 && $self->chance(18))
    {
        my ($sql, $types) = $self->block($depth - 1);
        my $alias = $self->alias('q');
        my $n = 0;
        return ("($sql) $alias", [ map { [ "$alias.c" . ++$n, $_ ] } @$types ]);
    }
    return $self->table;
}

# an equality between two scopes, or undef
sub equality
{
    my ($self, $left, $right) = @_;
    for my $try (1 .. 6)
    {
        my $type = $self->pick(qw(int int int int text num date big));
        my @l = $self->columns_of($left, $type);
        my @r = $self->columns_of($right, $type);
        return $self->pick(@l)->[0] . ' = ' . $self->pick(@r)->[0] if @l && @r;
    }
    return undef;
}

# (SQL, scope)
sub from
{
    my ($self, $depth) = @_;
    my $n = $self->{outer} ? $self->pick(2, 2, 3, 3, 3, 4) : $self->pick(1, 1, 1, 2, 2, 2, 2, 3, 3);
    my ($sql, $scope) = $self->from_item($depth);
    for my $i (2 .. $n)
    {
        # the last of many is joined by a key, so that there are not too many rows
        my ($other, $more) = $i >= 3 ? $self->table($self->pick('item', 'tiny', 'fact')) : $self->from_item($depth);
        my $on = $self->equality($scope, $more);
        if ($i >= 3)
        {
            my @int = $self->columns_of($scope, 'int');
            $on = @int ? $self->pick(@int)->[0] . " = $more->[0][0]" : undef;
        }
        if (!defined $on)
        {
            my $tiny;
            ($other, $more) = $self->table('tiny');
            $sql .= " CROSS JOIN $other";
            push @$scope, @$more;
            next;
        }
        my $kind = $self->{outer} && $self->chance($self->{outer}) ? 52 + $self->int(28) : $self->int(100);
        my $extra = $self->chance(30) ? ' AND ' . $self->predicate([ @$scope, @$more ], 1) : '';
        if ($kind < 40) { $sql .= " JOIN $other ON $on$extra" }
        elsif ($kind < 62) { $sql .= " LEFT JOIN $other ON $on$extra" }
        elsif ($kind < 70) { $sql .= " RIGHT JOIN $other ON $on$extra" }
        elsif ($kind < 80) { $sql .= " FULL JOIN $other ON $on" }
        elsif ($kind < 84 && $i == 2)
        {
            my ($l) = $self->columns_of($scope, 'int');
            my ($r) = $self->columns_of($more, 'int');
            $sql .= $l && $r ? $self->pick(' JOIN', ' LEFT JOIN') . " $other ON $l->[0] < $r->[0] AND $on" : " JOIN $other ON $on";
        }
        elsif ($kind < 88)
        {
            my ($t, $inner) = $self->table;
            my $a = $self->alias('l');
            my $eq = $self->equality($scope, $inner) // 'true';
            my $x = $self->value($inner, 'int', 1);
            my ($lat, $type) = @{ $self->pick(
                [ "SELECT count(*) AS c1 FROM $t WHERE $eq", 'big' ],
                [ "SELECT max($x) AS c1 FROM $t WHERE $eq", 'int' ],
                [ "SELECT $x AS c1 FROM $t WHERE $eq ORDER BY 1 LIMIT 2", 'int' ]) };
            $sql .= " CROSS JOIN LATERAL ($lat) $a";
            $more = [ [ "$a.c1", $type ] ];
        }
        else { $sql .= " JOIN $other ON $on" }
        push @$scope, @$more;
    }
    return ($sql, $scope);
}

# ---- query blocks: (SQL, list of column types) ----

sub named
{
    my $n = 0;
    return join ', ', map { "$_ AS c" . ++$n } @_;
}

sub where
{
    my ($self, $scope, $sub) = @_;
    return '' if $self->chance(45);
    return ' WHERE ' . $self->predicate($scope, 2, $sub // 25);
}

my @output = qw(int int int big num num text text date ts bool flt);

sub output_types
{
    my ($self, $scope, $n) = @_;
    my %there = map { $_->[1] => 1 } @$scope;
    my @types = grep { $there{$_} } @output;
    push @types, 'ci', 'ci' if $there{ci};
    push @types, 'int' unless @types;
    return map { $self->pick(@types) } 1 .. $n;
}

# an output value; "ci" and "fx" only as columns
sub out
{
    my ($self, $scope, $type) = @_;
    return $self->value($scope, $type, $type eq 'ci' || $type eq 'fx' || $type eq 'arr' ? 0 : 2);
}

sub select_block
{
    my ($self, $depth, $types) = @_;
    my ($from, $scope) = $self->from($depth);
    my @types = $types ? @$types : $self->output_types($scope, 1 + $self->int(4));
    my @list = map { $self->out($scope, $_) } @types;
    if (!$types && $depth > 0 && $self->chance(15))
    {
        my ($t, $inner) = $self->table;
        my $on = $self->equality($inner, $scope) // 'true';
        my $arg = $self->value($inner, 'int', 1);
        push @list, $self->pick("(SELECT count(*) FROM $t WHERE $on)", "(SELECT sum($arg) FROM $t WHERE $on)",
            "(SELECT max($arg)::bigint FROM $t WHERE $on)");
        push @types, 'big';
    }
    my $distinct = $self->chance(25) ? 'DISTINCT ' : '';
    return ("SELECT $distinct" . named(@list) . " FROM $from" . $self->where($scope), \@types);
}

# (SQL, type) of an aggregate
sub aggregate
{
    my ($self, $scope, $type) = @_;
    my %there = map { $_->[1] => 1 } @$scope;
    my $v = sub { $self->value($scope, $_[0], 1) };
    my @can = (
        sub { ('count(*)', 'big') },
        sub { ('count(' . $v->($self->pick(qw(int text num))) . ')', 'big') },
        sub { ('count(DISTINCT ' . $v->($self->pick(qw(int text num))) . ')', 'big') },
        sub { ('sum(' . $v->('int') . ')', 'big') },
        sub { ('sum(' . $v->('int') . ')', 'big') },
        sub { ($self->pick('min', 'max') . '(' . $v->('int') . ')', 'int') },
        sub { ('avg(' . $v->('int') . ')', 'num') },
        sub { ('bool_and(' . $self->predicate($scope, 0) . ')', 'bool') },
        sub { ('bool_or(' . $self->predicate($scope, 0) . ')', 'bool') });
    push @can,
      sub { ('sum(' . $v->('num') . ')', 'num') },
      sub { ('sum(' . $v->('num') . ')', 'num') },
      sub { ('avg(' . $v->('num') . ')', 'num') },
      sub { ($self->pick('min', 'max') . '(' . $v->('num') . ')', 'num') },
      sub { ('round(' . $self->pick('var_samp', 'stddev_pop') . '(' . $v->('int') . '), 6)', 'num') },
      sub { ('sum(DISTINCT ' . $v->('num') . ')', 'num') }
      if $there{num};
    push @can, sub { ('sum(' . $v->('big') . ')', 'num') }, sub { ('bit_xor(' . $v->('big') . ')', 'big') } if $there{big};
    push @can,
      sub { ('sum(' . $v->('flt') . ')', 'flt') },
      sub { ('avg(' . $v->('flt') . ')', 'fx') }
      if $there{flt};
    if ($there{text})
    {
        push @can,
          sub { ($self->pick('min', 'max') . '(' . $v->('text') . ')', 'text') },
          sub { my $x = '(' . $v->('text') . ')::text'; ("string_agg($x, ',' ORDER BY $x)", 'text') },
          sub { my $x = '(' . $v->('text') . ')::text'; ("string_agg(DISTINCT $x, ',' ORDER BY $x)", 'text') };
    }
    push @can, sub { ($self->pick('min', 'max') . '(' . $v->('date') . ')', 'date') } if $there{date};
    push @can, sub { ($self->pick('min', 'max') . '(' . $v->('ts') . ')', 'ts') } if $there{ts};
    push @can,
      sub { my $x = $v->('int'); ("array_agg($x ORDER BY $x)", 'arr') },
      sub { ('percentile_disc(0.5) WITHIN GROUP (ORDER BY ' . $v->('int') . ')', 'int') },
      sub { ('mode() WITHIN GROUP (ORDER BY ' . $v->('int') . ')', 'int') };
    my ($sql, $got);
    for (1 .. 50)
    {
        ($sql, $got) = $self->pick(@can)->();
        last if !defined $type || $got eq $type;
        ($sql, $got) = ();
    }
    return unless defined $sql;
    $sql .= ' FILTER (WHERE ' . $self->predicate($scope, 1) . ')' if $sql !~ /^round/ && $self->chance(15);
    return ($sql, $got);
}

sub group_block
{
    my ($self, $depth) = @_;
    my ($from, $scope) = $self->from($depth);
    my $where = $self->where($scope);
    my (@keys, %seen);
    if (!$self->chance(12))
    {
        for my $type ($self->output_types($scope, $self->pick(1, 1, 1, 2, 2, 3)))
        {
            next if $type eq 'flt' && $self->chance(70);
            my $key = $self->chance(70) || $type eq 'ci' ? $self->value($scope, $type, 0) : $self->value($scope, $type, 1);
            # a literal is no grouping key: numbers are positions, text has no type
            next if $key !~ /[a-z]\d+\./ || $seen{$key}++;
            push @keys, [ $key, $type ];
        }
    }
    my (@list, @types, @agg);
    for my $key (@keys)
    {
        next if $self->chance(8);
        push @list, $key->[0];
        push @types, $key->[1];
    }
    for (1 .. $self->pick(1, 1, 2, 2, 3))
    {
        my ($agg, $type) = $self->aggregate($scope);
        push @agg, [ $agg, $type ];
        if ($self->chance(12) && $type =~ /^(?:big|num)$/)
        {
            my ($b, $t) = $self->aggregate($scope, $type);
            ($agg, $type) = ("($agg + coalesce($b, 0))", $type) if defined $b;
        }
        push @list, $agg;
        push @types, $type;
    }
    my $group = '';
    if (@keys)
    {
        my @sql = map { $_->[0] } @keys;
        my $all = join ', ', @sql;
        $group = ' GROUP BY ' . (
              @sql > 1 && $self->chance(8) ? "ROLLUP ($all)"
            : @sql > 1 && $self->chance(5) ? 'GROUPING SETS ((' . $all . '), (' . $sql[0] . '), ())'
            : $all);
    }
    my $having = '';
    if ($self->chance(15))
    {
        my ($agg, $type) = $self->chance(50) ? @{ $self->pick(@agg) } : $self->aggregate($scope, 'big');
        $having = " HAVING $agg " . $self->pick('>', '<', '<>', '>=') . ' ' . $self->literal($type)
          if $type =~ /^(?:int|big|num|date|flt)$/;
    }
    # not over grouping sets: releases before 18 take columns that a join made
    # equal for equal where a grouping set has made one of them NULL
    my $distinct = $group !~ /ROLLUP|SETS/ && $self->chance(5) ? 'DISTINCT ' : '';
    return ("SELECT $distinct" . named(@list) . " FROM $from$where$group$having", \@types);
}

sub set_block
{
    my ($self, $depth) = @_;
    my ($left, $types) = $self->chance(30) ? $self->block($depth - 1) : $self->select_block(0);
    if (grep { /^(?:arr|fx)$/ } @$types)
    {
        ($left, $types) = $self->select_block(0);
    }
    my $sql = "($left)";
    for (1 .. $self->pick(1, 1, 1, 2))
    {
        my ($right) = $self->select_block($depth > 1 ? 1 : 0, $types);
        $sql .= ' ' . $self->pick('UNION', 'UNION', 'UNION ALL', 'UNION ALL', 'INTERSECT', 'INTERSECT ALL', 'EXCEPT', 'EXCEPT ALL')
          . " ($right)";
        $sql = "($sql)";
    }
    $sql =~ s/^\((.*)\)$/$1/s;
    return ($sql, $types);
}

# Windows over a subquery, whose columns together give a total order.
sub window_block
{
    my ($self, $depth) = @_;
    my ($inner, $in_types) = $self->chance(25) ? $self->group_block($depth - 1) : $self->select_block($depth > 1 ? 1 : 0);
    my $q = $self->alias('q');
    my $n = 0;
    my $scope = [ map { [ "$q.c" . ++$n, $_ ] } @$in_types ];
    my $total = join ', ', map { $_->[0] } @$scope;
    my $by = $self->chance(88) ? $self->pick(@$scope)->[0] : undef;
    my $part = defined $by ? "PARTITION BY $by" : '';
    my ($some) = $self->pick(@$scope);
    my @int = map { $_->[0] } $self->columns_of($scope, 'int', 'big');
    my @list = map { $_->[0] } @$scope;
    my @types = @$in_types;
    for (1 .. $self->pick(1, 1, 2))
    {
        my $dir = $self->pick('', ' DESC', ' NULLS FIRST');
        my ($fn, $type) = @{ $self->pick(
            [ "row_number() OVER ($part ORDER BY $total)", 'big' ],
            [ "rank() OVER ($part ORDER BY $some->[0]$dir)", 'big' ],
            [ "dense_rank() OVER ($part ORDER BY $some->[0]$dir)", 'big' ],
            [ "count(*) OVER ($part)", 'big' ],
            [ "lag($some->[0]) OVER ($part ORDER BY $total)", $some->[1] ],
            [ "lead($some->[0], 2) OVER ($part ORDER BY $total)", $some->[1] ],
            [ "first_value($some->[0]) OVER ($part ORDER BY $total)", $some->[1] ],
            [ "ntile(3) OVER ($part ORDER BY $total)", 'int' ],
            (@int
                ? ([ "sum($int[0]::int) OVER ($part ORDER BY $some->[0]$dir)", 'big' ],
                    [ "sum($int[0]::int) OVER ($part ORDER BY $total ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)", 'big' ],
                    [ "max($int[0]::int) OVER ($part)", 'int' ])
                : ())) };
        push @list, $fn;
        push @types, $type;
    }
    return ("SELECT " . named(@list) . " FROM ($inner) $q", \@types);
}

# What stands over a total order.
sub top_block
{
    my ($self, $depth) = @_;
    my ($inner, $types) = $self->block($depth - 1);
    my $q = $self->alias('q');
    my @cols = map { "$q.c$_" } 1 .. @$types;
    my $total = join ', ', @cols;
    my $dir = $self->pick('', ' DESC', ' DESC NULLS LAST');
    my @last = @cols;
    $last[0] .= $dir;
    return ("SELECT DISTINCT ON ($cols[0]) " . named(@cols) . " FROM ($inner) $q ORDER BY " . join(', ', @last), $types)
      if $self->chance(50);
    return ("SELECT " . named(@cols) . " FROM ($inner) $q ORDER BY " . join(', ', @last) . ' LIMIT ' . (1 + $self->int(15))
          . $self->pick('', '', ' OFFSET 2'), $types);
}

sub cte_block
{
    my ($self, $depth) = @_;
    my ($inner, $types) = $self->block($depth - 1);
    my $w = $self->alias('w');
    my @cols = map { "$w.c$_" } 1 .. @$types;
    my $scope = [ map { [ $cols[$_], $types->[$_] ] } 0 .. $#cols ];
    my $with = "WITH $w AS " . $self->pick('', '', 'MATERIALIZED ') . "($inner)";
    if ($self->chance(50))
    {
        # twice the same
        my $x = $self->alias('w');
        my @other = map { "$x.c$_" } 1 .. @$types;
        return ("$with SELECT " . named(@cols, $other[0]) . " FROM $w JOIN $w $x ON $cols[0] = $other[0]", [ @$types, $types->[0] ])
          if $self->chance(50) && $types->[0] ne 'bool';
        return ("$with SELECT " . named(@cols) . " FROM $w WHERE $cols[0] = (SELECT max($other[0]) FROM $w $x)", $types)
          if $types->[0] ne 'bool';
    }
    return ("$with SELECT " . named(@cols) . " FROM $w" . $self->where($scope), $types);
}

sub recursive_block
{
    my ($self) = @_;
    my $s = $self->{schema};
    my $w = $self->alias('r');
    my $to = $self->int(6);
    return ("WITH RECURSIVE $w (c1, c2) AS (SELECT id, item_id FROM $s.fact WHERE k = $to"
          . " UNION SELECT f.id, $w.c2 FROM $w JOIN $s.fact f ON f.id = $w.c2 + 1)"
          . " SELECT c1 AS c1, c2 AS c2 FROM $w", [ 'int', 'int' ]);
}

sub block
{
    my ($self, $depth) = @_;
    my $kind = $self->int(100);
    return $self->select_block($depth) if $depth <= 0 && $kind < 60;
    return $self->group_block($depth) if $depth <= 0;
    return $self->select_block($depth) if $kind < 25;
    return $self->group_block($depth) if $kind < 55;
    return $self->set_block($depth) if $kind < 70;
    return $self->window_block($depth) if $kind < 80;
    return $self->top_block($depth) if $kind < 88;
    return $self->cte_block($depth) if $kind < 98;
    return $self->recursive_block;
}

# the next query
sub query
{
    my ($self) = @_;
    $self->{counter} = 0;
    my ($sql) = $self->block($self->pick(1, 2, 2));
    return $sql;
}

# The n-th query of a seed, whatever was asked before: to repeat one alone.
sub nth
{
    my ($self, $seed, $n) = @_;
    $self->seed($seed * 100003 + $n);
    return $self->query;
}

1;
