/*
 * projection_groups.c
 *		Stages that group a linear core and keep counts, sums and extremes.
 *
 * Called by projection_class.c (to make the block) and projection_program.c
 * (to keep it).  A row of storage is a group: its keys, saga_n rows, and the
 * *pieces* that aggregates are made of when read.  Pieces follow by adding the
 * pieces of the delta; minima and maxima by comparing, and when what left may
 * have been the extreme, the group is marked (saga_r) and read again.
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/tlist.h"
#include "parser/parse_oper.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteManip.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/syscache.h"
#include "access/htup_details.h"
#include "utils/typcache.h"

#include "projection_plan.h"

/* ---- pieces ---- */

/* The block under construction. */
typedef struct GroupsBuilder
{
	SagaBlock  *block;
	Query	   *query;			/* with the aggregates */
	Query	   *core;
	List	   *args;			/* of Expr *: arguments in the core */
	List	   *arg_names;
} GroupsBuilder;

/* The column of the core that holds an argument, the filter applied. */
static char *
core_argument(GroupsBuilder *b, Aggref *agg)
{
	Expr	   *arg = saga_agg_arg(agg);
	ListCell   *e;
	ListCell   *n;
	char	   *name;

	if (arg == NULL)			/* count(*) */
	{
		if (agg->aggfilter == NULL)
			return NULL;
		arg = (Expr *) makeBoolConst(true, false);
	}
	if (agg->aggfilter != NULL)
	{
		CaseExpr   *cases = makeNode(CaseExpr);
		CaseWhen   *when = makeNode(CaseWhen);

		when->expr = copyObject(agg->aggfilter);
		when->result = arg;
		when->location = -1;
		cases->casetype = exprType((Node *) arg);
		cases->casecollid = exprCollation((Node *) arg);
		cases->args = list_make1(when);
		cases->defresult = (Expr *) makeNullConst(cases->casetype,
												  exprTypmod((Node *) arg),
												  cases->casecollid);
		cases->location = -1;
		arg = (Expr *) cases;
	}
	forboth(e, b->args, n, b->arg_names)
		if (equal(lfirst(e), arg))
			return lfirst(n);
	name = psprintf("saga_a%d", list_length(b->args) + 1);
	b->args = lappend(b->args, arg);
	b->arg_names = lappend(b->arg_names, name);
	saga_target(b->core, copyObject(arg), name);
	return name;
}

static SagaPiece *
get_piece(GroupsBuilder *b, SagaPieceKind kind, char *arg, const char *prefix,
		  char *sql, Oid type)
{
	SagaPiece  *piece;
	ListCell   *lc;
	int			n = 1;

	foreach(lc, b->block->pieces)
	{
		piece = lfirst(lc);
		if (piece->kind == kind && strcmp(piece->sql, sql) == 0)
			return piece;
		n++;
	}
	piece = palloc0(sizeof(SagaPiece));
	piece->kind = kind;
	piece->arg = arg;
	piece->sql = sql;
	piece->column = saga_column(psprintf("saga_%s%d", prefix, n), type, -1,
								get_typcollation(type));
	b->block->pieces = lappend(b->block->pieces, piece);
	return piece;
}

/* Name of the column that counts the values that are not null. */
static char *
count_piece(GroupsBuilder *b, Aggref *agg, char *arg)
{
	if (arg == NULL ||
		(agg->aggfilter == NULL &&
		 saga_expr_notnull(b->query, (Node *) saga_agg_arg(agg))))
		return "saga_n";
	return get_piece(b, SAGA_PIECE_ADD, arg, "c",
					 psprintf("sum(CASE WHEN %s IS NULL THEN 0 ELSE saga_w END)::bigint", arg),
					 INT8OID)->column->name;
}

/*
 * Digits after the point of a sum, over storage; NULL if they are always the
 * same.  Counts per scale are the "digits" of one number to the base 10^12,
 * so that they add up too.
 */
static char *
scale_piece(GroupsBuilder *b, Aggref *agg, char *arg)
{
	SagaPiece  *piece;

	if (exprType((Node *) saga_agg_arg(agg)) != NUMERICOID ||
		saga_fixed_scale((Node *) saga_agg_arg(agg)) >= 0)
		return NULL;
	piece = get_piece(b, SAGA_PIECE_ADD, arg, "e",
					  psprintf("coalesce(sum(saga_w::numeric * ('1e' || 12 * scale(%s))::numeric), 0::numeric)", arg),
					  NUMERICOID);
	return psprintf("(length(%s::text) - 1) / 12", piece->column->name);
}

static char *
rounded(char *column, char *scale, int times)
{
	if (scale == NULL)
		return column;
	return psprintf("round(%s, %s%s)", column, scale, times == 2 ? " * 2" : "");
}

static SagaPiece *
sum_piece(GroupsBuilder *b, Aggref *agg, char *arg)
{
	Oid			type = exprType((Node *) saga_agg_arg(agg));
	SagaPiece  *piece;

	switch (type)
	{
		case INT2OID:
		case INT4OID:
			return get_piece(b, SAGA_PIECE_ADD, arg, "s",
							 psprintf("coalesce(sum(saga_w * %s), 0)::bigint", arg),
							 INT8OID);
		case INT8OID:
		case NUMERICOID:
			piece = get_piece(b, SAGA_PIECE_ADD, arg, "s",
							  psprintf("coalesce(sum(saga_w::numeric * %s::numeric), 0::numeric)", arg),
							  NUMERICOID);
			piece->nonfinite = type == NUMERICOID;
			return piece;
		case INTERVALOID:
			piece = get_piece(b, SAGA_PIECE_ADD, arg, "s",
							  psprintf("coalesce(sum(saga_w::float8 * %s), '0'::interval)", arg),
							  INTERVALOID);
			piece->no_zero_test = true;
			return piece;
		case CASHOID:
			return get_piece(b, SAGA_PIECE_ADD, arg, "s",
							 psprintf("coalesce(sum(%s * saga_w), 0::money)", arg),
							 CASHOID);
		default:
			elog(ERROR, "no sum of type %u", type);
	}
}

static char *
extreme_piece(GroupsBuilder *b, SagaAggKind kind, Aggref *agg, char *arg)
{
	Expr	   *expr = saga_agg_arg(agg);
	Oid			type = exprType((Node *) expr);
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_BTREE_OPFAMILY);
	SagaPiece  *piece = get_piece(b, kind == SAGA_AGG_MIN ? SAGA_PIECE_MIN :
								  SAGA_PIECE_MAX, arg, "m",
								  psprintf("%s(%s)", kind == SAGA_AGG_MIN ? "min" :
										   "max", arg), type);

	piece->column->collation = exprCollation((Node *) expr);
	piece->removed = psprintf("saga_x%s", piece->column->name + strlen("saga_m"));
	piece->compare = get_opfamily_member(entry->btree_opf, entry->btree_opintype,
										 entry->btree_opintype,
										 kind == SAGA_AGG_MIN ? BTLessEqualStrategyNumber :
										 BTGreaterEqualStrategyNumber);
	if (!OidIsValid(piece->compare))
		elog(ERROR, "no comparison for type %u", type);
	return piece->column->name;
}

/* What an aggregate is, over storage. */
static char *
final_sql(GroupsBuilder *b, Aggref *agg)
{
	char	   *why;
	SagaAggKind		kind = saga_agg_kind(agg, &why);
	char	   *arg = core_argument(b, agg);
	bool		always = false;
	char	   *n;
	char	   *s;
	char	   *q;
	char	   *scale;
	char	   *value;

	if (kind == SAGA_AGG_COUNT)
		return count_piece(b, agg, arg);
	if (kind == SAGA_AGG_MIN || kind == SAGA_AGG_MAX)
		return extreme_piece(b, kind, agg, arg);
	if (kind == SAGA_AGG_BOOL_AND || kind == SAGA_AGG_BOOL_OR)
	{
		char	   *t = get_piece(b, SAGA_PIECE_ADD, arg, "t",
								  psprintf("sum(CASE WHEN %s THEN saga_w ELSE 0 END)::bigint", arg),
								  INT8OID)->column->name;
		char	   *f = get_piece(b, SAGA_PIECE_ADD, arg, "f",
								  psprintf("sum(CASE WHEN NOT %s THEN saga_w ELSE 0 END)::bigint", arg),
								  INT8OID)->column->name;

		return psprintf("CASE WHEN %s + %s > 0 THEN %s END", t, f,
						kind == SAGA_AGG_BOOL_AND ? psprintf("%s = 0", f) :
						psprintf("%s > 0", t));
	}

	n = count_piece(b, agg, arg);
	/* a group that exists has a value that is not null */
	always = strcmp(n, "saga_n") == 0 && !b->block->one_group;
	s = sum_piece(b, agg, arg)->column->name;
	scale = scale_piece(b, agg, arg);
	switch (kind)
	{
		case SAGA_AGG_SUM:
			value = rounded(s, scale, 1);
			break;
		case SAGA_AGG_AVG:
			if (exprType((Node *) saga_agg_arg(agg)) == INTERVALOID)
				value = psprintf("%s / %s::float8", s, n);
			else
				value = psprintf("%s::numeric / %s::numeric",
								 rounded(s, scale, 1), n);
			break;
		default:
			{
				bool		sample = kind == SAGA_AGG_VAR_SAMP || kind == SAGA_AGG_STDDEV_SAMP;
				SagaPiece  *squares = get_piece(b, SAGA_PIECE_ADD, arg, "q",
												psprintf("coalesce(sum(saga_w::numeric * (%s::numeric * %s::numeric)), 0::numeric)", arg, arg),
												NUMERICOID);

				squares->nonfinite = exprType((Node *) saga_agg_arg(agg)) == NUMERICOID;
				s = psprintf("%s::numeric", rounded(s, scale, 1));
				q = rounded(squares->column->name, scale, 2);
				value = psprintf("(%s::numeric * %s - %s * %s)", n, q, s, s);
				/* as the server's own: what rounds below zero is zero */
				value = psprintf("CASE WHEN %s <= 0::numeric THEN 0::numeric ELSE %s / (%s::numeric * %s::numeric) END",
								 value, value, n,
								 sample ? psprintf("(%s - 1)", n) : n);
				if (kind == SAGA_AGG_STDDEV_SAMP || kind == SAGA_AGG_STDDEV_POP)
					value = psprintf("coalesce(round(sqrt(%s), scale(%s)), 'NaN'::numeric)", value, value);
				return psprintf("CASE WHEN %s > %d THEN %s END", n,
								sample ? 1 : 0, value);
			}
	}
	return always ? value : psprintf("CASE WHEN %s > 0 THEN %s END", n, value);
}

/* ---- the block ---- */

/*
 * Columns that the group keys determine may be used without being one: make
 * them keys, which changes nothing.
 */
void
saga_add_dependent_keys(Query *query)
{
	List	   *from = NIL;
	List	   *to = NIL;
	List	   *vars;
	ListCell   *lc;
	Index		ref = 0;

	foreach(lc, query->groupClause)
	{
		Node	   *expr = get_sortgroupclause_expr(lfirst(lc),
													query->targetList);

		from = lappend(from, expr);
		to = lappend(to, makeNullConst(exprType(expr), exprTypmod(expr),
									   exprCollation(expr)));
	}
	foreach(lc, saga_own_aggregates(query))
	{
		Node	   *agg = lfirst(lc);

		from = lappend(from, agg);
		to = lappend(to, makeNullConst(exprType(agg), -1, exprCollation(agg)));
	}
	vars = list_concat(pull_vars_of_level(saga_replace_exprs((Node *) query->targetList, from, to), 0),
					   pull_vars_of_level(saga_replace_exprs(query->havingQual, from, to), 0));
	foreach(lc, query->targetList)
		ref = Max(ref, lfirst_node(TargetEntry, lc)->ressortgroupref);
	foreach(lc, vars)
	{
		Var		   *var = copyObject(lfirst_node(Var, lc));
		SortGroupClause *clause;
		TargetEntry *tle;
		ListCell   *other;
		bool		hashable;

		var->varlevelsup = 0;
		tle = NULL;
		foreach(other, query->targetList)
			if (equal(lfirst_node(TargetEntry, other)->expr, var))
				tle = lfirst(other);
		if (tle != NULL && tle->ressortgroupref != 0 &&
			get_sortgroupref_clause_noerr(tle->ressortgroupref,
										  query->groupClause) != NULL)
			continue;
		if (!saga_type_groupable(var->vartype))
			SAGA_REFUSE(errmsg("a column of type %s is shown with every group",
							   format_type_be(var->vartype)),
						errdetail("It depends on the group key, but values of this type cannot be compared."),
						errhint("Cast it to text or jsonb, and group by it."));
		if (tle == NULL)
		{
			tle = makeTargetEntry((Expr *) var,
								  list_length(query->targetList) + 1, NULL,
								  true);
			query->targetList = lappend(query->targetList, tle);
		}
		if (tle->ressortgroupref == 0)
			tle->ressortgroupref = ++ref;
		clause = makeNode(SortGroupClause);
		clause->tleSortGroupRef = tle->ressortgroupref;
		get_sort_group_operators(var->vartype, true, true, false,
								 &clause->sortop, &clause->eqop, NULL,
								 &hashable);
		clause->hashable = hashable;
		query->groupClause = lappend(query->groupClause, clause);
	}
}

static char *
key_name(TargetEntry *tle, int i, bool top)
{
	if (top && !tle->resjunk)
		return tle->resname;
	return psprintf("saga_k%d", i);
}

/*
 * query: grouped, its FROM linear; DISTINCT is grouping by everything.
 */
SagaBlock *
saga_groups_block(SagaPlanner *planner, Query *query, int number, bool top)
{
	SagaBlock  *block = palloc0(sizeof(SagaBlock));
	GroupsBuilder builder;
	GroupsBuilder *b = &builder;
	StringInfoData list;
	List	   *from = NIL;
	List	   *to;
	Query	   *view;
	ListCell   *lc;
	int			i = 0;

	memset(b, 0, sizeof(builder));
	b->block = block;
	b->query = query;
	saga_add_dependent_keys(query);
	block->kind = SAGA_BLOCK_GROUPS;
	block->one_group = query->groupClause == NIL;
	b->core = makeNode(Query);
	b->core->commandType = CMD_SELECT;
	b->core->canSetTag = true;
	b->core->rtable = copyObject(query->rtable);
	b->core->jointree = copyObject(query->jointree);

	initStringInfo(&list);
	foreach(lc, query->groupClause)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		TargetEntry *tle = get_sortgroupclause_tle(clause, query->targetList);
		SagaColumn *column;

		if (list_member(from, tle->expr))
			continue;
		column = saga_column_of_expr(key_name(tle, ++i, top),
									 (Node *) tle->expr);
		column->notnull = saga_expr_notnull(query, (Node *) tle->expr);
		block->columns = lappend(block->columns, column);
		saga_target(b->core, copyObject(tle->expr), column->name);
		from = lappend(from, tle->expr);
		appendStringInfo(&list, "%s%s", list.len == 0 ? "" : ", ",
						 quote_identifier(column->name));
		block->nkeys++;
	}
	if (block->one_group)
	{
		SagaColumn *column = saga_column("saga_one", BOOLOID, -1, InvalidOid);

		column->notnull = true;
		block->columns = lappend(block->columns, column);
		saga_target(b->core, (Expr *) makeBoolConst(true, false), column->name);
		block->nkeys = 1;
	}
	block->columns = lappend(block->columns,
							 saga_column("saga_n", INT8OID, -1, InvalidOid));
	foreach(lc, saga_own_aggregates(query))
	{
		Aggref	   *agg = lfirst_node(Aggref, lc);

		from = lappend(from, agg);
		appendStringInfo(&list, "%s%s", list.len == 0 ? "" : ", ",
						 final_sql(b, agg));
	}
	foreach(lc, block->pieces)
	{
		SagaPiece  *piece = lfirst(lc);

		block->columns = lappend(block->columns, piece->column);
		if (piece->removed != NULL)
			block->columns = lappend(block->columns,
									 saga_column(piece->removed,
												 piece->column->type, -1,
												 piece->column->collation));
	}
	block->columns = lappend(block->columns,
							 saga_column("saga_r", BOOLOID, -1, InvalidOid));

	block->cores = saga_expand_unions(b->core);

	/* the output, over storage */
	view = saga_parse_over_storage(number, block->columns,
								   list.len == 0 ? "true" : list.data);
	to = NIL;
	foreach(lc, view->targetList)
		to = lappend(to, lfirst_node(TargetEntry, lc)->expr);
	view->targetList = (List *) saga_replace_exprs((Node *) query->targetList,
												   from, to);
	view->jointree->quals = saga_replace_exprs(query->havingQual, from, to);
	saga_set_view(block, view, top);

	/* groups are told apart by their keys, if all of them are put out */
	i = 0;
	for (int key = 1; key <= block->nkeys && !block->one_group; key++)
	{
		bool		found = false;

		i = 0;
		foreach(lc, view->targetList)
		{
			TargetEntry *tle = lfirst_node(TargetEntry, lc);

			if (tle->resjunk)
				continue;
			i++;
			if (IsA(tle->expr, Var) && ((Var *) tle->expr)->varattno == key)
			{
				block->unique = lappend_int(block->unique, i);
				found = true;
				break;
			}
		}
		if (!found)
		{
			block->unique = NIL;
			break;
		}
	}
	/* null keys do not join, and count as one: fit for identity as well */
	return block;
}

/* ---- statements ---- */

static void
append_merge_of(StringInfo buf, SagaPiece *piece)
{
	const char *name = piece->column->name;

	if (piece->kind == SAGA_PIECE_ADD)
		appendStringInfo(buf, ", %s = s.%s + excluded.%s", name, name, name);
	else
		appendStringInfo(buf, ", %s = %s(s.%s, excluded.%s), %s = NULL", name,
						 piece->kind == SAGA_PIECE_MIN ? "least" : "greatest",
						 name, name, piece->removed);
}

/* Must the group be read again?  s is the stored row, NULL for a new one. */
static char *
dirty_sql(SagaBlock *block, const char *new, bool merge)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, block->pieces)
	{
		SagaPiece  *piece = lfirst(lc);
		const char *name = piece->column->name;

		if (piece->nonfinite)
			appendStringInfo(&buf, "%s(%s%s.%s) IN ('NaN', 'Infinity', '-Infinity')",
							 buf.len == 0 ? "" : " OR ",
							 merge ? psprintf("s.%s + ", name) : "", new, name);
		if (piece->removed != NULL && merge)
		{
			char	   *op = saga_operator_sql(piece->compare);

			/* gone is what was the extreme, and nothing as good came */
			appendStringInfo(&buf, "%scoalesce(%s.%s %s s.%s, false) AND NOT coalesce(%s.%s %s s.%s, false)",
							 buf.len == 0 ? "" : " OR ",
							 new, piece->removed, op, name,
							 new, name, op, name);
		}
	}
	return buf.len == 0 ? "false" : buf.data;
}

/* Cores (or their terms) grouped: the columns of storage. */
static char *
grouped_sql(SagaBlock *block, const char *terms, bool fresh)
{
	StringInfoData buf;
	StringInfoData zero;
	char	   *keys = saga_column_list(block->columns, block->nkeys, NULL);
	char	   *extremes = "";
	bool		testable = true;
	ListCell   *lc;

	initStringInfo(&buf);
	initStringInfo(&zero);
	foreach(lc, block->pieces)
	{
		SagaPiece  *piece = lfirst(lc);

		if (piece->kind != SAGA_PIECE_ADD && !fresh)
		{
			if (strstr(psprintf("%s,", extremes), psprintf(", %s,", piece->arg)) == NULL)
				extremes = psprintf("%s, %s", extremes, piece->arg);
		}
	}
	if (fresh && block->one_group)
		appendStringInfoString(&buf, "SELECT true AS saga_one");
	else
		appendStringInfo(&buf, "SELECT %s", keys);
	appendStringInfoString(&buf, fresh && block->one_group ?
						   ", coalesce(sum(saga_w), 0)::bigint AS saga_n" :
						   ", sum(saga_w)::bigint AS saga_n");
	appendStringInfoString(&zero, "sum(saga_w) <> 0");
	foreach(lc, block->pieces)
	{
		SagaPiece  *piece = lfirst(lc);
		const char *name = piece->column->name;

		if (piece->kind == SAGA_PIECE_ADD)
		{
			char	   *sql = extremes[0] == '\0' ? piece->sql :
				psprintf("sum(%s)::%s", name, saga_type_sql(piece->column));

			if (fresh && block->one_group)
				sql = psprintf("coalesce(%s, 0::%s)", sql,
							   piece->column->type == INTERVALOID ? "text::interval" :
							   saga_type_sql(piece->column));
			appendStringInfo(&buf, ", %s AS %s", sql, name);
			if (piece->no_zero_test)
				testable = false;
			else
				appendStringInfo(&zero, " OR %s <> 0::%s", sql,
								 saga_type_sql(piece->column));
		}
		else if (fresh)
			appendStringInfo(&buf, ", %s AS %s, NULL::%s AS %s", piece->sql,
							 name, saga_type_sql(piece->column),
							 piece->removed);
		else
		{
			const char *fn = piece->kind == SAGA_PIECE_MIN ? "min" : "max";

			appendStringInfo(&buf, ", %s(%s) FILTER (WHERE saga_w > 0) AS %s, %s(%s) FILTER (WHERE saga_w < 0) AS %s",
							 fn, piece->arg, name, fn, piece->arg,
							 piece->removed);
			appendStringInfo(&zero, " OR count(%s) FILTER (WHERE saga_w <> 0) > 0",
							 piece->arg);
		}
	}
	if (extremes[0] == '\0')
		appendStringInfo(&buf, " FROM (%s) d", terms);
	else
	{
		/* single terms are not rows: only their sum per value is */
		appendStringInfo(&buf, " FROM (SELECT %s%s, sum(saga_w)::bigint AS saga_w",
						 keys, extremes);
		foreach(lc, block->pieces)
		{
			SagaPiece  *piece = lfirst(lc);

			if (piece->kind == SAGA_PIECE_ADD)
				appendStringInfo(&buf, ", %s AS %s", piece->sql,
								 piece->column->name);
		}
		appendStringInfo(&buf, " FROM (%s) t GROUP BY %s%s) d", terms, keys,
						 extremes);
	}
	if (!fresh || !block->one_group)
		appendStringInfo(&buf, " GROUP BY %s", keys);
	if (!fresh && testable)
		appendStringInfo(&buf, " HAVING %s", zero.data);
	return buf.data;
}

/* All columns of storage, in order. */
char *
saga_groups_fresh(SagaProgram *program, SagaStage *stage, const char *only)
{
	SagaBlock  *block = stage->block;
	char	   *terms = saga_core_new(program, block->cores);

	if (only != NULL)
		terms = psprintf("SELECT c.* FROM (%s) c, %s u WHERE %s", terms, only,
						 saga_key_join(block->columns, block->nkeys, "c", "u"));
	return psprintf("SELECT f.*, false AS saga_r FROM (%s) f",
					grouped_sql(block, terms, true));
}

List *
saga_groups_maintain(SagaProgram *program, SagaStage *stage,
					 SagaChanges *changes)
{
	SagaBlock  *block = stage->block;
	int			number = stage->number;
	char	   *terms = saga_core_terms(program, block->cores, changes, NULL);
	char	   *keys = saga_column_list(block->columns, block->nkeys, NULL);
	char	   *delta = grouped_sql(block, terms, false);
	char	   *u = psprintf("saga_u%d", number);
	char	   *dirty = dirty_sql(block, "excluded", true);
	bool		rereads = strcmp(dirty, "false") != 0;
	List	   *result = NIL;
	StringInfoData buf;
	ListCell   *lc;

	if (stage->feeds)
	{
		char	   *g = psprintf("saga_g%d", number);

		result = lappend(result, saga_statement(delta, g, NULL));
		result = lappend(result, saga_statement(saga_touched_sql(program, stage),
												psprintf("saga_o%d", number), g));
		delta = psprintf("SELECT * FROM %s", g);
	}

	initStringInfo(&buf);
	appendStringInfo(&buf, "WITH m AS (INSERT INTO %s AS s (%s) SELECT g.*, %s FROM (%s) g ON CONFLICT (%s) DO UPDATE SET saga_n = s.saga_n + excluded.saga_n",
					 stage->storage, saga_column_list(block->columns, -1, NULL),
					 dirty_sql(block, "g", false), delta, keys);
	foreach(lc, block->pieces)
		append_merge_of(&buf, lfirst(lc));
	if (rereads)
		appendStringInfo(&buf, ", saga_r = %s", dirty);
	appendStringInfo(&buf, " RETURNING %s, saga_n, saga_r) SELECT * FROM m WHERE saga_r%s",
					 saga_column_list(block->columns, block->nkeys, "s"),
					 block->one_group ? "" : " OR saga_n <= 0");
	result = lappend(result, saga_statement(buf.data, u, NULL));

	if (!block->one_group || rereads)
		result = lappend(result,
						 saga_statement(psprintf("DELETE FROM %s s USING %s u WHERE %s",
												 stage->storage, u,
												 saga_key_join(block->columns,
															   block->nkeys,
															   "s", "u")),
										NULL, u));
	if (rereads)
		result = lappend(result,
						 saga_statement(psprintf("INSERT INTO %s (%s) %s",
												 stage->storage,
												 saga_column_list(block->columns, -1, NULL),
												 saga_groups_fresh(program, stage,
																   psprintf("(SELECT * FROM %s WHERE saga_r)", u))),
										NULL, u));
	if (stage->feeds)
		result = lappend(result, saga_output_delta(program, stage));
	return result;
}
