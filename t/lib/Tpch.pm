# Tpch: the TPC-H tables and queries of t/tpch for tests, and what Writers have
# to know to change the tables at random.
package Tpch;

use strict;
use warnings;

sub slurp
{
    my ($file) = @_;
    open my $fh, '<', $file or die "$file: $!";
    local $/;
    my $text = <$fh>;
    close $fh;
    return $text;
}

# Schema and rows of a scale factor; spare copies of what is truncated.
sub load
{
    my ($class, $scale) = @_;
    return slurp('t/tpch/schema.sql') . slurp('t/tpch/load.sql') . <<SQL;
SET search_path = tpch;
CALL load($scale);
CREATE SCHEMA spare;
CREATE TABLE spare.region AS TABLE region;
CREATE TABLE spare.nation AS TABLE nation;
CREATE TABLE spare.supplier AS TABLE supplier;
ANALYZE;
SQL
}

# number => query, without the comment and without a semicolon
sub queries
{
    my %query;
    for my $file (glob 't/tpch/queries/q*.sql')
    {
        my ($name) = $file =~ m{(q\d+)\.sql$};
        $query{$name} = slurp($file);
        $query{$name} =~ s/^--.*\n//;
        $query{$name} =~ s/\s+$//;
    }
    return %query;
}

# The titles of the queries, from their comments
sub titles
{
    my %title;
    for my $file (glob 't/tpch/queries/q*.sql')
    {
        my ($name) = $file =~ m{(q\d+)\.sql$};
        ($title{$name}) = slurp($file) =~ /^-- Q\d+ (.*)/;
    }
    return %title;
}

sub text { my @list = @_; return sub { "'" . $_[0]->pick(@list) . "'" } }
sub number { my ($lo, $hi, $scale) = @_; return sub { sprintf '%.2f', ($lo + $_[0]->int($hi - $lo + 1)) / ($scale // 1) } }
sub key { my ($n) = @_; return sub { 1 + $_[0]->int($n) } }
sub day { return sub { "date '1992-01-01' + " . $_[0]->int(2500) } }

sub tables
{
    my ($class, $scale) = @_;
    my $key = sub { return key(int($_[0] * $scale) || 1) };
    my ($part, $supplier, $customer, $order) = ($key->(200_000), $key->(10_000), $key->(150_000), $key->(1_500_000));
    my $rows = 100_000;
    my @nations = map { sprintf '%-25s', $_ } 'FRANCE', 'GERMANY', 'BRAZIL', 'CANADA', 'SAUDI ARABIA', 'CHINA', 'KENYA';
    my $phone = sub { 10 + $_[0]->int(25) };
    return (
        'tpch.region' => { key => ['r_regionkey'], rows => $rows, keep => 1, truncate => 'INSERT INTO tpch.region TABLE spare.region', columns => [
            [ r_regionkey => sub { $_[0]->int(5) } ], [ r_name => text('ASIA', 'EUROPE', 'AMERICA', 'AFRICA', 'MIDDLE EAST') ],
            [ r_comment => 'word', 20 ] ] },
        'tpch.nation' => { key => ['n_nationkey'], rows => $rows, keep => 1, truncate => 'INSERT INTO tpch.nation TABLE spare.nation', columns => [
            [ n_nationkey => sub { $_[0]->int(25) } ], [ n_name => text(@nations) ], [ n_regionkey => sub { $_[0]->int(5) } ],
            [ n_comment => 'word', 20 ] ] },
        'tpch.supplier' => { key => ['s_suppkey'], rows => $rows, weight => 3, truncate => 'INSERT INTO tpch.supplier TABLE spare.supplier', columns => [
            [ s_suppkey => $supplier ], [ s_name => sub { sprintf q('Supplier#%09d'), 1 + $_[0]->int(100 * $scale * 100) } ],
            [ s_address => 'word' ], [ s_nationkey => sub { $_[0]->int(25) } ], [ s_phone => sub { "'" . $phone->($_[0]) . "-1'" } ],
            [ s_acctbal => number(-99999, 999999, 100) ], [ s_comment => text('x', 'y', 'the Customer with Complaints') ] ] },
        'tpch.part' => { key => ['p_partkey'], rows => $rows, weight => 4, columns => [
            [ p_partkey => $part ], [ p_name => text('forest green', 'green sky', 'azure', 'forest', 'dim green rose') ],
            [ p_mfgr => text('Manufacturer#1', 'Manufacturer#2') ], [ p_brand => text('Brand#12', 'Brand#23', 'Brand#34', 'Brand#45', 'Brand#11') ],
            [ p_type => text('ECONOMY ANODIZED STEEL', 'LARGE BRUSHED BRASS', 'PROMO PLATED TIN', 'MEDIUM POLISHED TIN', 'SMALL PLATED BRASS') ],
            [ p_size => sub { $_[0]->pick(1, 3, 9, 14, 15, 15, 19, 23, 36, 45, 49) } ],
            [ p_container => text('SM CASE', 'MED BOX', 'MED BOX', 'LG PKG', 'JUMBO CAN') ],
            [ p_retailprice => number(90000, 200000, 100) ], [ p_comment => 'word' ] ] },
        'tpch.partsupp' => { key => [ 'ps_partkey', 'ps_suppkey' ], rows => $rows, weight => 5, columns => [
            [ ps_partkey => $part ], [ ps_suppkey => $supplier ], [ ps_availqty => sub { $_[0]->int(9999) } ],
            [ ps_supplycost => number(100, 100_000, 100) ], [ ps_comment => 'word' ] ] },
        'tpch.customer' => { key => ['c_custkey'], rows => $rows, weight => 5, columns => [
            [ c_custkey => $customer ], [ c_name => sub { sprintf q('Customer#%09d'), $_[0]->int(2000) } ], [ c_address => 'word' ],
            [ c_nationkey => sub { $_[0]->int(25) } ],
            [ c_phone => sub { "'" . $_[0]->pick(13, 31, 23, 29, 30, 18, 17, 11) . "-2'" } ],
            [ c_acctbal => number(-99999, 999999, 100) ], [ c_mktsegment => text('BUILDING', 'MACHINERY', 'HOUSEHOLD') ], [ c_comment => 'word' ] ] },
        'tpch.orders' => { key => ['o_orderkey'], rows => $rows, weight => 10, columns => [
            [ o_orderkey => $order ], [ o_custkey => $customer ], [ o_orderstatus => text('F', 'O', 'P') ],
            [ o_totalprice => number(100_000, 40_000_000, 100) ], [ o_orderdate => day() ],
            [ o_orderpriority => text('1-URGENT', '2-HIGH', '3-MEDIUM', '5-LOW') ], [ o_clerk => text('Clerk#1') ],
            [ o_shippriority => sub { 0 } ], [ o_comment => text('a', 'special packages requests', 'b') ] ] },
        'tpch.lineitem' => { key => [ 'l_orderkey', 'l_linenumber' ], rows => $rows, weight => 16, columns => [
            [ l_orderkey => $order ], [ l_partkey => $part ], [ l_suppkey => $supplier ], [ l_linenumber => sub { 1 + $_[0]->int(7) } ],
            [ l_quantity => number(1, 70) ], [ l_extendedprice => number(90_000, 10_000_000, 100) ],
            [ l_discount => number(0, 10, 100) ], [ l_tax => number(0, 8, 100) ],
            [ l_returnflag => text('R', 'A', 'N') ], [ l_linestatus => text('O', 'F') ],
            [ l_shipdate => day() ], [ l_commitdate => day() ], [ l_receiptdate => day() ],
            [ l_shipinstruct => text('DELIVER IN PERSON', 'NONE') ], [ l_shipmode => text('AIR', 'MAIL', 'SHIP', 'RAIL') ],
            [ l_comment => 'word' ] ] });
}

1;
