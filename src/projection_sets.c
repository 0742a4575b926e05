/*
 * projection_sets.c
 *		Set operations: UNION, INTERSECT and EXCEPT, with or without ALL.
 *
 * Called by projection_class.c and projection_program.c.  A row of storage is a
 * distinct row of any leaf, with a counter per leaf; how often it is to be
 * shown is an expression over the counters.  UNION ALL alone needs no
 * counters: its leaves are terms of one core.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteManip.h"
#include "utils/builtins.h"

#include "projection_plan.h"

/* More cores than this are a stage of their own. */
#define MAX_CORES 16

/* ---- UNION ALL as part of a core ---- */

static int
union_leaves(Query *query, Node *node, List **leaves)
{
	if (IsA(node, SetOperationStmt))
	{
		SetOperationStmt *set = (SetOperationStmt *) node;

		if (set->op != SETOP_UNION || !set->all)
			return -1;
		if (union_leaves(query, set->larg, leaves) < 0 ||
			union_leaves(query, set->rarg, leaves) < 0)
			return -1;
	}
	else
	{
		RangeTblEntry *rte = rt_fetch(castNode(RangeTblRef, node)->rtindex,
									  query->rtable);

		if (rte->rtekind != RTE_SUBQUERY)
			return -1;
		*leaves = lappend(*leaves, rte->subquery);
	}
	return list_length(*leaves);
}

/* Only UNION ALL, and its leaves linear? */
bool
saga_union_all_linear(Query *query)
{
	List	   *leaves = NIL;
	ListCell   *lc;

	if (query->setOperations == NULL || query->limitCount != NULL ||
		query->limitOffset != NULL || query->cteList != NIL ||
		saga_query_correlated(query) ||
		union_leaves(query, query->setOperations, &leaves) < 0 ||
		list_length(leaves) > MAX_CORES)
		return false;
	foreach(lc, leaves)
	{
		Query	   *leaf = lfirst_node(Query, lc);

		if (leaf->setOperations != NULL ? !saga_union_all_linear(leaf) :
			!saga_linear(leaf))
			return false;
	}
	return true;
}

/* The leaf with the types of the set operation. */
static Query *
typed_leaf(Query *leaf, SetOperationStmt *set)
{
	Query	   *result = copyObject(leaf);
	ListCell   *lc;
	ListCell   *type;
	ListCell   *typmod;
	ListCell   *collation;
	List	   *targets = NIL;

	/* junk of sorting goes, that of grouping stays */
	foreach(lc, result->targetList)
		if (!lfirst_node(TargetEntry, lc)->resjunk)
			targets = lappend(targets, lfirst(lc));
	if (saga_query_simple(result, true))
	{
		result->sortClause = NIL;
		result->targetList = targets;
	}
	forfour(lc, targets, type, set->colTypes,
			typmod, set->colTypmods, collation, set->colCollations)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);
		Node	   *expr = (Node *) tle->expr;

		if (exprType(expr) != lfirst_oid(type))
			expr = coerce_to_common_type(NULL, expr, lfirst_oid(type), "UNION");
		if (exprTypmod(expr) != lfirst_int(typmod) && lfirst_int(typmod) >= 0)
			expr = coerce_to_target_type(NULL, expr, exprType(expr),
										 lfirst_oid(type), lfirst_int(typmod),
										 COERCION_IMPLICIT,
										 COERCE_IMPLICIT_CAST, -1);
		if (OidIsValid(lfirst_oid(collation)) &&
			exprCollation(expr) != lfirst_oid(collation))
			expr = (Node *) makeRelabelType((Expr *) expr, lfirst_oid(type),
											exprTypmod(expr),
											lfirst_oid(collation),
											COERCE_IMPLICIT_CAST);
		tle->expr = (Expr *) expr;
	}
	return result;
}

/* A core for every leaf of every union in FROM. */
List *
saga_expand_unions(Query *core)
{
	ListCell   *lc;

	foreach(lc, core->jointree->fromlist)
	{
		int			rtindex = castNode(RangeTblRef, lfirst(lc))->rtindex;
		RangeTblEntry *rte = rt_fetch(rtindex, core->rtable);
		List	   *leaves = NIL;
		List	   *result = NIL;
		ListCell   *l;

		if (rte->rtekind != RTE_SUBQUERY)
			continue;
		if (rte->subquery->setOperations == NULL)
			elog(ERROR, "subquery in a linear core");
		union_leaves(rte->subquery, rte->subquery->setOperations, &leaves);
		foreach(l, leaves)
		{
			Query	   *one = copyObject(core);

			rt_fetch(rtindex, one->rtable)->subquery =
				typed_leaf(lfirst(l),
						   castNode(SetOperationStmt,
									rte->subquery->setOperations));
			saga_query_pull_up(one);
			result = list_concat(result, saga_expand_unions(one));
		}
		return result;
	}
	return list_make1(core);
}

/* ---- counters ---- */

typedef struct SetsBuilder
{
	Query	   *query;
	SagaBlock  *block;
} SetsBuilder;

/* How often a row is shown, over the counters of the leaves below. */
static char *
multiplicity(SetsBuilder *b, Node *node, SetOperationStmt *top)
{
	SetOperationStmt *set;
	char	   *left;
	char	   *right;

	if (IsA(node, RangeTblRef))
	{
		RangeTblEntry *rte = rt_fetch(((RangeTblRef *) node)->rtindex,
									  b->query->rtable);
		Query	   *leaf = typed_leaf(rte->subquery, top);
		int			n = list_length(b->block->cores) + 1;

		b->block->cores = lappend(b->block->cores, leaf);
		return psprintf("s.saga_n%d", n);
	}
	set = castNode(SetOperationStmt, node);
	left = multiplicity(b, set->larg, top);
	right = multiplicity(b, set->rarg, top);
	switch (set->op)
	{
		case SETOP_UNION:
			return set->all ? psprintf("(%s + %s)", left, right) :
				psprintf("(%s > 0 OR %s > 0)::int", left, right);
		case SETOP_INTERSECT:
			return set->all ? psprintf("least(%s, %s)", left, right) :
				psprintf("(%s > 0 AND %s > 0)::int", left, right);
		case SETOP_EXCEPT:
			return set->all ? psprintf("greatest(%s - %s, 0)", left, right) :
				psprintf("(%s > 0 AND %s <= 0)::int", left, right);
		default:
			elog(ERROR, "unrecognized set operation: %d", (int) set->op);
	}
}

static bool
node_repeats(Node *node)
{
	return IsA(node, RangeTblRef) || ((SetOperationStmt *) node)->all;
}

/* SELECT * FROM a stage or a linear query, as a leaf. */
static Query *
leaf_core(SagaPlanner *planner, Query *leaf, List *columns)
{
	ListCell   *lc;
	ListCell   *c;

	if (!saga_linear(leaf))
		leaf = saga_select_stage(planner, saga_plan_query(planner, leaf, false));
	forboth(lc, leaf->targetList, c, columns)
		lfirst_node(TargetEntry, lc)->resname = ((SagaColumn *) lfirst(c))->name;
	return leaf;
}

/* Nothing but UNION (ALL)? */
static bool
only_unions(Node *node, bool all)
{
	SetOperationStmt *set = (SetOperationStmt *) node;

	if (!IsA(node, SetOperationStmt))
		return true;
	return set->op == SETOP_UNION && (set->all || !all) &&
		only_unions(set->larg, all) && only_unions(set->rarg, all);
}

/* Duplicates are taken out above: here they may stay. */
static void
make_all(Node *node)
{
	SetOperationStmt *set = (SetOperationStmt *) node;

	if (!IsA(node, SetOperationStmt))
		return;
	set->all = true;
	set->groupClauses = NIL;
	make_all(set->larg);
	make_all(set->rarg);
}

/* Leaves that are not linear become stages. */
static void
stage_leaves(SagaPlanner *planner, Query *query, Node *node)
{
	if (IsA(node, SetOperationStmt))
	{
		stage_leaves(planner, query, ((SetOperationStmt *) node)->larg);
		stage_leaves(planner, query, ((SetOperationStmt *) node)->rarg);
	}
	else
	{
		RangeTblEntry *rte = rt_fetch(((RangeTblRef *) node)->rtindex,
									  query->rtable);

		if (rte->subquery->setOperations == NULL && !saga_linear(rte->subquery))
			rte->subquery = saga_select_stage(planner,
											  saga_plan_query(planner, rte->subquery, false));
	}
}

/* SELECT * FROM (query) */
static Query *
select_all_of(Query *query, List *columns)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	Query	   *result;
	ListCell   *c;
	ListCell   *t;
	int			i = 0;

	rte->rtekind = RTE_SUBQUERY;
	rte->subquery = query;
	rte->alias = makeAlias("u", NIL);
	rte->eref = makeAlias("u", NIL);
	rte->inFromCl = true;
	result = saga_select_from(rte);
	forboth(c, columns, t, query->targetList)
	{
		SagaColumn *column = lfirst(c);
		TargetEntry *tle;

		rte->eref->colnames = lappend(rte->eref->colnames,
									  makeString(pstrdup(column->name)));
		tle = saga_target(result, (Expr *) saga_column_var(1, ++i, column),
						  column->name);
		tle->ressortgroupref = lfirst_node(TargetEntry, t)->ressortgroupref;
	}
	return result;
}

int
saga_plan_sets(SagaPlanner *planner, Query *query, bool top)
{
	SetOperationStmt *set = castNode(SetOperationStmt, query->setOperations);
	SetsBuilder b = {query, palloc0(sizeof(SagaBlock))};
	SagaBlock  *block = b.block;
	List	   *keys = NIL;
	Query	   *view;
	bool		image = true;
	ListCell   *lc;
	ListCell   *type;
	ListCell   *typmod;
	ListCell   *collation;
	List	   *cores = NIL;
	int			number;
	int			i = 0;

	forfour(lc, query->targetList, type, set->colTypes,
			typmod, set->colTypmods, collation, set->colCollations)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);
		SagaColumn *column = saga_column(top ? tle->resname : psprintf("c%d", ++i),
										 lfirst_oid(type), lfirst_int(typmod),
										 lfirst_oid(collation));

		keys = lappend(keys, column);
		image &= saga_type_groupable(column->type) &&
			saga_type_image_equal(column->type, column->typmod,
								  column->collation);
	}

	if (only_unions(query->setOperations, true) ||
		(!set->all && only_unions(query->setOperations, false)))
	{
		/* UNION ALL is a core with many terms; UNION its distinct rows */
		bool		distinct = !set->all;
		Query	   *all;

		make_all(query->setOperations);
		stage_leaves(planner, query, query->setOperations);
		all = select_all_of(query, keys);
		if (distinct && !saga_make_distinct(all))
			elog(ERROR, "a union of columns that cannot be compared");
		return saga_plan_query(planner, all, top);
	}
	if (list_length(keys) >= INDEX_MAX_KEYS)
		return saga_plan_full(planner, query, top,
							  "no index can hold so many columns");
	if (!image)
		return saga_plan_full(planner, query, top,
							  "equal values of a column can look different, and a set operation shows one of them");

	block->kind = SAGA_BLOCK_SETS;
	block->multiplicity = multiplicity(&b, query->setOperations, set);
	block->repeats = node_repeats(query->setOperations);
	foreach(lc, block->cores)
		cores = lappend(cores, leaf_core(planner, lfirst(lc), keys));
	block->cores = cores;
	block->columns = keys;
	block->nkeys = list_length(keys);
	for (i = 1; i <= list_length(cores); i++)
		block->columns = lappend(block->columns,
								 saga_column(psprintf("saga_n%d", i), INT8OID, -1,
											 InvalidOid));

	number = list_length(planner->program->stages);
	view = saga_parse_over_storage(number, block->columns, "true");
	view->targetList = NIL;
	i = 0;
	foreach(lc, query->targetList)
	{
		TargetEntry *tle = copyObject(lfirst_node(TargetEntry, lc));

		i++;
		if (tle->resjunk)
			continue;
		tle->expr = (Expr *) saga_column_var(1, i, list_nth(block->columns, i - 1));
		view->targetList = lappend(view->targetList, tle);
	}
	saga_set_view(block, view, top);
	if (!block->repeats)
		for (i = 1; i <= block->nkeys; i++)
			block->unique = lappend_int(block->unique, i);
	return saga_stage_add(planner, block, SAGA_CLASS_DISTINCT,
						  "equal rows are counted for each part");
}

/* ---- statements ---- */

/* Leaves side by side: the columns, a count for each, from terms or rows. */
static char *
counted(SagaProgram *program, SagaStage *stage, SagaChanges *changes)
{
	SagaBlock  *block = stage->block;
	int			n = list_length(block->cores);
	char	   *keys = saga_column_list(block->columns, block->nkeys, NULL);
	StringInfoData terms;
	StringInfoData buf;
	int			leaf = 0;
	ListCell   *lc;

	initStringInfo(&terms);
	foreach(lc, block->cores)
	{
		List	   *one = list_make1(lfirst(lc));
		char	   *text = changes == NULL ? saga_core_new(program, one) :
			saga_core_terms(program, one, changes, NULL);

		leaf++;
		if (text == NULL)
			continue;
		appendStringInfo(&terms, "%sSELECT t.*, %d AS saga_leaf FROM (%s) t",
						 terms.len == 0 ? "" : " UNION ALL ", leaf, text);
	}
	initStringInfo(&buf);
	appendStringInfo(&buf, "SELECT %s", keys);
	for (leaf = 1; leaf <= n; leaf++)
		appendStringInfo(&buf, ", coalesce(sum(saga_w) FILTER (WHERE saga_leaf = %d), 0)::bigint AS saga_n%d",
						 leaf, leaf);
	appendStringInfo(&buf, " FROM (%s) d GROUP BY %s HAVING false", terms.data,
					 keys);
	for (leaf = 1; leaf <= n; leaf++)
		appendStringInfo(&buf, " OR sum(saga_w) FILTER (WHERE saga_leaf = %d) <> 0",
						 leaf);
	return buf.data;
}

char *
saga_sets_fresh(SagaProgram *program, SagaStage *stage)
{
	return counted(program, stage, NULL);
}

List *
saga_sets_maintain(SagaProgram *program, SagaStage *stage, SagaChanges *changes)
{
	SagaBlock  *block = stage->block;
	int			n = list_length(block->cores);
	char	   *names = saga_column_list(block->columns, -1, NULL);
	char	   *keys = saga_column_list(block->columns, block->nkeys, NULL);
	char	   *delta = counted(program, stage, changes);
	char	   *u = psprintf("saga_u%d", stage->number);
	List	   *result = NIL;
	StringInfoData buf;

	if (stage->feeds)
	{
		char	   *g = psprintf("saga_g%d", stage->number);

		result = lappend(result, saga_statement(delta, g, NULL));
		result = lappend(result, saga_statement(saga_touched_sql(program, stage),
												psprintf("saga_o%d", stage->number), g));
		delta = psprintf("SELECT * FROM %s", g);
	}
	initStringInfo(&buf);
	appendStringInfo(&buf, "WITH m AS (INSERT INTO %s AS s (%s) SELECT * FROM (%s) g ON CONFLICT (%s) DO UPDATE SET ",
					 stage->storage, names, delta, keys);
	for (int leaf = 1; leaf <= n; leaf++)
		appendStringInfo(&buf, "%ssaga_n%d = s.saga_n%d + excluded.saga_n%d",
						 leaf == 1 ? "" : ", ", leaf, leaf, leaf);
	appendStringInfo(&buf, " RETURNING %s) SELECT * FROM m WHERE true",
					 saga_column_list(block->columns, -1, "s"));
	for (int leaf = 1; leaf <= n; leaf++)
		appendStringInfo(&buf, " AND saga_n%d = 0", leaf);
	result = lappend(result, saga_statement(buf.data, u, NULL));
	result = lappend(result,
					 saga_statement(psprintf("DELETE FROM %s s USING %s u WHERE %s",
											 stage->storage, u,
											 saga_key_join(block->columns,
														   block->nkeys, "s", "u")),
									NULL, u));
	if (stage->feeds)
		result = lappend(result, saga_output_delta(program, stage));
	return result;
}
