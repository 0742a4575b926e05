/*
 * projection_class.c
 *		Cuts a query into stages and decides how each of them is kept.
 *
 * Called by saga_program_build().  A block that is linear (selects, projects,
 * inner joins) or groups one by invertible aggregates follows by its delta;
 * everything else is cut off into a stage of its own, whose delta the next one
 * reads as if it were a table's, or is recomputed by key, or in full.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/tlist.h"
#include "parser/parse_oper.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteManip.h"
#include "utils/lsyscache.h"

#include "projection_plan.h"

/* ---- references to stages ---- */

/* Put a stage in the place of a subquery; its columns keep their numbers. */
static void
refer_to_stage(SagaPlanner *planner, RangeTblEntry *rte, int stage)
{
	SagaStage  *s = list_nth(planner->program->stages, stage);
	RangeTblEntry *ref = saga_enr_rte(psprintf("saga:stage %d", stage),
									  rte->eref->aliasname, s->block->out);

	*rte = *ref;
}

RangeTblEntry *
saga_stage_rte(SagaPlanner *planner, int stage)
{
	SagaStage  *s = list_nth(planner->program->stages, stage);

	return saga_enr_rte(psprintf("saga:stage %d", stage),
						psprintf("s%d", stage), s->block->out);
}

/* A stage for a subquery; the same one for the same text. */
int
saga_stage_for(SagaPlanner *planner, Query *query)
{
	char	   *text = saga_deparse_raw(query);
	ListCell   *lc;
	int			stage;
	SagaStagedText *staged;

	foreach(lc, planner->texts)
	{
		staged = lfirst(lc);
		if (strcmp(staged->text, text) == 0)
			return staged->stage;
	}
	stage = saga_plan_query(planner, query, false);
	staged = palloc(sizeof(SagaStagedText));
	staged->text = text;
	staged->stage = stage;
	planner->texts = lappend(planner->texts, staged);
	return stage;
}

/* ---- what is linear ---- */

static bool
in_from_list(Query *query, int rtindex)
{
	ListCell   *lc;

	foreach(lc, query->jointree->fromlist)
		if (IsA(lfirst(lc), RangeTblRef) &&
			((RangeTblRef *) lfirst(lc))->rtindex == rtindex)
			return true;
	return false;
}

/* Can rows of this entry be joined term by term? */
static bool
linear_rte(Query *query, int rtindex)
{
	RangeTblEntry *rte = rt_fetch(rtindex, query->rtable);

	switch (rte->rtekind)
	{
		case RTE_SUBQUERY:
			return saga_union_all_linear(rte->subquery);
		case RTE_FUNCTION:
			return !saga_has_sublink((Node *) rte->functions);
		case RTE_VALUES:
			return !saga_has_sublink((Node *) rte->values_lists);
		case RTE_TABLEFUNC:
			return !saga_has_sublink((Node *) rte->tablefunc);
		default:
			return saga_rte_input(rte);
	}
}

/* Only inner joins of inputs, and no subqueries in conditions? */
static bool
linear_from(Query *query)
{
	ListCell   *lc;

	foreach(lc, query->jointree->fromlist)
		if (!IsA(lfirst(lc), RangeTblRef) ||
			!linear_rte(query, ((RangeTblRef *) lfirst(lc))->rtindex))
			return false;
	return !saga_has_sublink(query->jointree->quals);
}

bool
saga_linear(Query *query)
{
	return saga_query_simple(query, true) && linear_from(query) &&
		!saga_has_sublink((Node *) query->targetList);
}

/* Why the FROM and WHERE of a query are not linear. */
static char *
why_not_linear(Query *query)
{
	ListCell   *lc;

	if (saga_has_outer_join((Node *) query->jointree))
		return "an outer join";
	foreach(lc, query->jointree->fromlist)
		if (IsA(lfirst(lc), RangeTblRef) &&
			!linear_rte(query, ((RangeTblRef *) lfirst(lc))->rtindex))
			return "a lateral or ordered subquery";
	return "a subquery in a condition or column";
}

/* ---- preparing: subqueries that become stages ---- */

static void prepare(SagaPlanner *planner, Query *query);

/* One row whatever the tables hold? */
static bool
always_one_row(Query *query)
{
	return query->hasAggs && query->groupClause == NIL &&
		query->groupingSets == NIL && query->havingQual == NULL &&
		query->setOperations == NULL && query->limitCount == NULL &&
		query->limitOffset == NULL && !query->hasTargetSRFs;
}

typedef struct PrepareContext
{
	SagaPlanner *planner;
	Query	   *query;
	bool		join;			/* may entries be added to FROM? */
} PrepareContext;

/* SELECT its columns FROM stage */
Query *
saga_select_stage(SagaPlanner *planner, int stage)
{
	SagaStage  *s = list_nth(planner->program->stages, stage);
	Query	   *query = saga_select_from(saga_stage_rte(planner, stage));
	int			i = 0;
	ListCell   *lc;

	foreach(lc, s->block->out)
	{
		SagaColumn *column = lfirst(lc);

		i++;
		saga_target(query, (Expr *) saga_column_var(1, i, column),
					column->name);
	}
	return query;
}

static int
add_to_from(Query *query, RangeTblEntry *rte)
{
	RangeTblRef *ref = makeNode(RangeTblRef);

	query->rtable = lappend(query->rtable, rte);
	ref->rtindex = list_length(query->rtable);
	/* first, so that lateral entries may refer to it */
	query->jointree->fromlist = lcons(ref, query->jointree->fromlist);
	return ref->rtindex;
}

static Node *
prepare_sublinks_mutator(Node *node, PrepareContext *context)
{
	if (node == NULL || IsA(node, Query))
		return node;
	if (IsA(node, SubLink))
	{
		SubLink    *link = copyObject((SubLink *) node);
		Query	   *sub;

		link->testexpr = prepare_sublinks_mutator(link->testexpr, context);
		sub = castNode(Query, link->subselect);
		if (saga_query_correlated(sub) || saga_query_simple(sub, true))
		{
			prepare(context->planner, sub);
			return (Node *) link;
		}
		if (link->subLinkType == EXPR_SUBLINK && always_one_row(sub))
		{
			int			stage = saga_stage_for(context->planner, sub);
			RangeTblEntry *rte = saga_stage_rte(context->planner, stage);

			if (context->join)
			{
				SagaStage  *s = list_nth(context->planner->program->stages,
										 stage);
				int			rtindex = 0;
				ListCell   *lc;

				foreach(lc, context->query->jointree->fromlist)
				{
					RangeTblRef *ref = lfirst(lc);

					if (IsA(ref, RangeTblRef) &&
						saga_rte_stage(rt_fetch(ref->rtindex, context->query->rtable)) == stage)
						rtindex = ref->rtindex;
				}
				if (rtindex == 0)
					rtindex = add_to_from(context->query, rte);
				return (Node *) saga_column_var(rtindex, 1,
												linitial(s->block->out));
			}
			link->subselect = (Node *) saga_select_stage(context->planner, stage);
			return (Node *) link;
		}
		link->subselect = (Node *) saga_select_stage(context->planner,
												saga_stage_for(context->planner, sub));
		return (Node *) link;
	}
	/* inside an aggregate the rows are still there to be joined */
	if (IsA(node, Aggref) && !context->join)
	{
		Node	   *result;

		context->join = true;
		result = expression_tree_mutator(node, prepare_sublinks_mutator,
										 (void *) context);
		context->join = false;
		return result;
	}
	return expression_tree_mutator(node, prepare_sublinks_mutator,
								   (void *) context);
}

/* Conditions of outer joins see their own tables only. */
static void
prepare_join_quals(SagaPlanner *planner, Query *query, Node *jointree)
{
	PrepareContext context = {planner, query, false};

	if (IsA(jointree, JoinExpr))
	{
		JoinExpr   *join = (JoinExpr *) jointree;

		join->quals = prepare_sublinks_mutator(join->quals, &context);
		prepare_join_quals(planner, query, join->larg);
		prepare_join_quals(planner, query, join->rarg);
	}
}

typedef struct InReplace
{
	int			rtindex;
	List	   *columns;
} InReplace;

static Node *
in_params_mutator(Node *node, InReplace *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Param) && ((Param *) node)->paramkind == PARAM_SUBLINK)
	{
		int			attno = ((Param *) node)->paramid;

		return (Node *) saga_column_var(context->rtindex, attno,
										list_nth(context->columns, attno - 1));
	}
	return expression_tree_mutator(node, in_params_mutator, (void *) context);
}

static bool
plain_equalities(Node *testexpr)
{
	List	   *list;
	ListCell   *lc;

	if (testexpr == NULL)
		return false;
	if (is_andclause(testexpr))
		list = ((BoolExpr *) testexpr)->args;
	else
		list = list_make1(testexpr);
	foreach(lc, list)
	{
		OpExpr	   *op = lfirst(lc);

		if (!IsA(op, OpExpr) || list_length(op->args) != 2 ||
			!op_mergejoinable(op->opno, exprType(linitial(op->args))) ||
			saga_has_sublink((Node *) op))
			return false;
	}
	return true;
}

/*
 * x IN (SELECT ...) as a condition, over a subquery that is a stage anyway: a
 * join with its distinct rows, which has a delta.
 */
static void
join_in(SagaPlanner *planner, Query *query)
{
	List	   *quals = make_ands_implicit((Expr *) query->jointree->quals);
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, quals)
	{
		SubLink    *link = lfirst(lc);
		InReplace	context;
		Query	   *sub;
		Query	   *distinct;
		SagaStage  *s;
		int			stage;
		bool		unique;

		if (!IsA(link, SubLink) || link->subLinkType != ANY_SUBLINK ||
			!plain_equalities(link->testexpr))
		{
			result = lappend(result, link);
			continue;
		}
		sub = castNode(Query, link->subselect);
		if (saga_query_correlated(sub) || saga_query_simple(sub, true))
		{
			result = lappend(result, link);
			continue;
		}
		stage = saga_stage_for(planner, sub);
		s = list_nth(planner->program->stages, stage);
		unique = s->block->unique != NIL || s->block->one_group;
		if (!unique)
		{
			distinct = saga_select_stage(planner, stage);
			if (!saga_make_distinct(distinct))
			{
				link->subselect = (Node *) distinct;
				result = lappend(result, link);
				continue;
			}
			stage = saga_stage_for(planner, distinct);
			s = list_nth(planner->program->stages, stage);
		}
		context.rtindex = add_to_from(query, saga_stage_rte(planner, stage));
		context.columns = s->block->out;
		result = list_concat(result,
							 make_ands_implicit((Expr *) in_params_mutator(link->testexpr,
																		   &context)));
	}
	query->jointree->quals = result == NIL ? NULL :
		(Node *) make_ands_explicit(result);
}

/* Group (or make distinct) a plain query by all its columns. */
bool
saga_make_distinct(Query *query)
{
	Index		ref = 0;
	ListCell   *lc;

	foreach(lc, query->targetList)
		ref = Max(ref, lfirst_node(TargetEntry, lc)->ressortgroupref);
	foreach(lc, query->targetList)
		if (!saga_type_groupable(exprType((Node *) lfirst_node(TargetEntry, lc)->expr)))
			return false;
	foreach(lc, query->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);
		SortGroupClause *clause = makeNode(SortGroupClause);
		bool		hashable;

		if (tle->ressortgroupref == 0)
			tle->ressortgroupref = ++ref;
		clause->tleSortGroupRef = tle->ressortgroupref;
		get_sort_group_operators(exprType((Node *) tle->expr), true, true, false,
								 &clause->sortop, &clause->eqop, NULL,
								 &hashable);
		clause->hashable = hashable;
		query->distinctClause = lappend(query->distinctClause, clause);
	}
	return true;
}

/* Subqueries that are no part of a linear core become stages. */
static void
prepare(SagaPlanner *planner, Query *query)
{
	bool		grouped = query->hasAggs || query->groupClause != NIL ||
		query->havingQual != NULL;
	PrepareContext context = {planner, query, true};
	ListCell   *lc;

	check_stack_depth();
	if (query->setOperations != NULL)
	{
		foreach(lc, query->rtable)
		{
			RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

			if (rte->rtekind == RTE_SUBQUERY)
				prepare(planner, rte->subquery);
		}
		return;
	}
	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);
		PrepareContext inner = {planner, query, false};

		switch (rte->rtekind)
		{
			case RTE_SUBQUERY:
				if (saga_query_correlated(rte->subquery) ||
					saga_query_simple(rte->subquery, true))
					prepare(planner, rte->subquery);
				else if (saga_union_all_linear(rte->subquery) &&
						 in_from_list(query, foreach_current_index(lc) + 1))
					prepare(planner, rte->subquery);
				else
					refer_to_stage(planner, rte, saga_stage_for(planner, rte->subquery));
				break;
			case RTE_FUNCTION:
				rte->functions = (List *)
					prepare_sublinks_mutator((Node *) rte->functions, &inner);
				break;
			case RTE_VALUES:
				rte->values_lists = (List *)
					prepare_sublinks_mutator((Node *) rte->values_lists, &inner);
				break;
			default:
				break;
		}
	}
	foreach(lc, query->jointree->fromlist)
		prepare_join_quals(planner, query, lfirst(lc));
	join_in(planner, query);
	query->jointree->quals = prepare_sublinks_mutator(query->jointree->quals,
													  &context);
	context.join = !grouped;
	query->targetList = (List *)
		prepare_sublinks_mutator((Node *) query->targetList, &context);
	query->havingQual = prepare_sublinks_mutator(query->havingQual, &context);
}

/* ---- deciding ---- */

static bool
grouped(Query *query)
{
	return query->hasAggs || query->groupClause != NIL ||
		query->havingQual != NULL || query->groupingSets != NIL;
}

static int
add_rows(SagaPlanner *planner, Query *query, bool top)
{
	return saga_stage_add(planner,
						  saga_rows_block(planner, query,
										  list_length(planner->program->stages), top),
						  SAGA_CLASS_DELTA,
						  "selects, projects and inner joins follow by their delta");
}

static int
add_groups(SagaPlanner *planner, Query *query, SagaClass class, bool top,
		   const char *reason)
{
	return saga_stage_add(planner,
						  saga_groups_block(planner, query,
											list_length(planner->program->stages), top),
						  class, reason);
}

static int
add_keyed(SagaPlanner *planner, Query *query, List *keys, SagaClass class,
		  bool top, const char *reason)
{
	if (top && planner->key != NIL)
	{
		/* rows of a plain query are computed one by one */
		bool		any = saga_query_simple(query, true);

		if (!any && keys == NIL)
			SAGA_REFUSE(errmsg("the query cannot be recomputed by key"),
						errdetail("It is recomputed in full: %s.", reason),
						errhint("Leave the key out."));
		keys = saga_user_keys(planner, query, any ? NIL : keys);
		planner->key = NIL;
		class = class == SAGA_CLASS_FULL ? SAGA_CLASS_KEY : class;
	}
	if (class != SAGA_CLASS_FULL && !saga_keys_work(planner, query, keys, &reason))
	{
		keys = NIL;
		class = SAGA_CLASS_FULL;
	}
	return saga_stage_add(planner,
						  saga_keyed_block(planner, query, keys,
										   list_length(planner->program->stages), top),
						  class, reason);
}

int
saga_plan_full(SagaPlanner *planner, Query *query, bool top, const char *reason)
{
	return add_keyed(planner, query, NIL, SAGA_CLASS_FULL, top, reason);
}

/* Expressions of SortGroupClauses. */
static List *
clause_exprs(List *clauses, List *targetlist)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, clauses)
		result = list_append_unique(result,
									get_sortgroupclause_expr(lfirst(lc),
															 targetlist));
	return result;
}

/* Expressions by which all windows of a query partition. */
static List *
common_partition(Query *query)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, query->windowClause)
	{
		WindowClause *window = lfirst_node(WindowClause, lc);
		List	   *exprs = clause_exprs(window->partitionClause,
										 query->targetList);

		result = lc == list_head(query->windowClause) ? exprs :
			list_intersection(result, exprs);
	}
	return result;
}

/* Sublinks where they are evaluated once a row. */
static bool
args_have_sublink(Query *query)
{
	return saga_has_sublink((Node *) clause_exprs(query->groupClause,
												  query->targetList)) ||
		saga_has_sublink((Node *) saga_own_aggregates(query));
}

static int	plan_block(SagaPlanner *planner, Query *query, bool top);

static int
plan_grouped(SagaPlanner *planner, Query *query, bool top)
{
	SagaClass	class;
	char	   *why = "";
	List	   *keys;
	ListCell   *lc;
	bool		computed = false;

	if (saga_order_sensitive(query))
		planner->deterministic = false;

	if (query->groupingSets != NIL)
		return saga_plan_full(planner, query, top,
						"GROUPING SETS group the same rows in several ways");

	/* what needs more than the group itself is computed above it */
	foreach(lc, query->targetList)
	{
		Node	   *expr = (Node *) lfirst_node(TargetEntry, lc)->expr;
		List	   *from = list_concat(clause_exprs(query->groupClause, query->targetList),
									   saga_own_aggregates(query));

		expr = saga_replace_exprs(expr, from, saga_nulls_for(from));
		if (expression_returns_set(expr) || (saga_has_sublink(expr) && !top))
			computed = true;
		if (saga_has_sublink(expr) && !saga_reads_one_rows(planner->program, expr))
			computed = true;
	}
	if (query->hasWindowFuncs || query->distinctClause != NIL || computed ||
		(saga_has_sublink(query->havingQual) &&
		 (!top || !saga_reads_one_rows(planner->program,
													  query->havingQual))))
	{
		saga_cut_grouping(planner, query);
		saga_drop_junk(planner, query, top);
		return plan_block(planner, query, top);
	}

	if (!linear_from(query) || args_have_sublink(query))
	{
		keys = saga_grouping_key(planner, query);
		if (keys != NIL)
			return add_keyed(planner, query, keys, SAGA_CLASS_KEY, top,
							 psprintf("%s under groups of one row of a table",
									  why_not_linear(query)));
		saga_add_dependent_keys(query);
		saga_cut_core(planner, query);
	}
	if (saga_groups_invertible(query, &class, &why))
		return add_groups(planner, query, class, top,
						  class == SAGA_CLASS_MIN_MAX ?
						  "a group is read again when its least or greatest value may have left" :
						  "counts and sums follow by addition");
	saga_add_dependent_keys(query);
	keys = clause_exprs(query->groupClause, query->targetList);
	if (query->groupClause == NIL)
		keys = list_make1(makeBoolConst(true, false));
	return add_keyed(planner, query, keys, SAGA_CLASS_GROUP, top, why);
}

static int
plan_plain(SagaPlanner *planner, Query *query, bool top)
{
	List	   *keys;

	if (linear_from(query) && !saga_has_sublink((Node *) query->targetList) &&
		(!top || planner->key == NIL))
		return add_rows(planner, query, top);
	keys = saga_core_key(planner, query);
	if (keys == NIL)
		return saga_plan_full(planner, query, top,
						"no columns are there by which rows could be recomputed");
	return add_keyed(planner, query, keys, SAGA_CLASS_KEY, top,
					 why_not_linear(query));
}

static int
plan_distinct(SagaPlanner *planner, Query *query, bool top)
{
	SagaClass	class;
	char	   *why;

	if (query->hasDistinctOn)
	{
		List	   *keys = clause_exprs(query->distinctClause,
										query->targetList);

		planner->deterministic = false;
		return add_keyed(planner, query, keys, SAGA_CLASS_KEY, top,
						 "DISTINCT ON takes one row of many");
	}
	if (!linear_from(query) || saga_has_sublink((Node *) query->targetList) ||
		query->hasTargetSRFs)
	{
		saga_cut_below_distinct(planner, query);
		saga_drop_junk(planner, query, top);
		return plan_block(planner, query, top);
	}
	query->groupClause = query->distinctClause;
	query->distinctClause = NIL;
	if (saga_groups_invertible(query, &class, &why))
		return add_groups(planner, query, SAGA_CLASS_DISTINCT, top,
						  "equal rows are counted");
	query->distinctClause = query->groupClause;
	query->groupClause = NIL;
	return add_keyed(planner, query,
					 clause_exprs(query->distinctClause, query->targetList),
					 SAGA_CLASS_GROUP, top, why);
}

/* Window functions whose result depends on the order of peers. */
static bool
ties_walker(Node *node, Query *query)
{
	static const char *const names[] = {
		"first_value", "lag", "last_value", "lead", "nth_value", "ntile",
		"row_number",
	};

	if (node == NULL || IsA(node, Query))
		return false;
	if (IsA(node, WindowFunc))
	{
		WindowFunc *func = (WindowFunc *) node;
		WindowClause *window = list_nth(query->windowClause, func->winref - 1);
		const char *name = get_func_name(func->winfnoid);
		size_t		length = strlen(name);

		for (int i = 0; i < (int) lengthof(names); i++)
			if (strcmp(name, names[i]) == 0)
				return true;
		if ((window->frameOptions & FRAMEOPTION_ROWS) ||
			(length > 4 && strcmp(name + length - 4, "_agg") == 0))
			return true;
	}
	return expression_tree_walker(node, ties_walker, (void *) query);
}

static int
plan_windows(SagaPlanner *planner, Query *query, bool top)
{
	List	   *keys = common_partition(query);

	if (ties_walker((Node *) query->targetList, query))
		planner->deterministic = false;
	if (keys == NIL)
		return saga_plan_full(planner, query, top,
						"window functions without a common PARTITION BY see all rows");
	return add_keyed(planner, query, keys, SAGA_CLASS_KEY, top,
					 "window functions see the rows of their partition");
}

/* Unions in FROM that cannot be joined term by term. */
static void
stage_unions(SagaPlanner *planner, Query *query)
{
	ListCell   *lc;

	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		if (rte->rtekind == RTE_SUBQUERY &&
			saga_union_all_linear(rte->subquery))
			refer_to_stage(planner, rte, saga_stage_for(planner, rte->subquery));
	}
}

static int
plan_block(SagaPlanner *planner, Query *query, bool top)
{
	bool		linear;

	if (query->cteList != NIL)
		return saga_plan_full(planner, query, top, "recursion");
	prepare(planner, query);
	linear = linear_from(query) && !query->hasWindowFuncs &&
		!query->hasDistinctOn;
	if (!linear)
		stage_unions(planner, query);
	if (grouped(query))
		return plan_grouped(planner, query, top);
	if (query->hasWindowFuncs && query->distinctClause != NIL)
	{
		saga_cut_below_distinct(planner, query);
		saga_drop_junk(planner, query, top);
		return plan_block(planner, query, top);
	}
	if (query->hasWindowFuncs)
		return plan_windows(planner, query, top);
	if (query->distinctClause != NIL)
		return plan_distinct(planner, query, top);
	return plan_plain(planner, query, top);
}

/* An aggregate whose result depends on an order that the query leaves open? */
static bool
open_order_walker(Node *node, void *context)
{
	static const char *const ordered[] = {
		"array_agg", "string_agg", "json_agg", "jsonb_agg", "json_object_agg",
		"jsonb_object_agg", "xmlagg"
	};

	if (node == NULL)
		return false;
	if (IsA(node, Aggref) && ((Aggref *) node)->aggorder == NIL)
	{
		char	   *name = get_func_name(((Aggref *) node)->aggfnoid);

		for (int i = 0; i < (int) lengthof(ordered); i++)
			if (name != NULL && strcmp(name, ordered[i]) == 0)
				return true;
	}
	return expression_tree_walker(node, open_order_walker, context);
}

/*
 * Make the stages of a self-contained query; returns the number of the last.
 * At the top, order and limit are left to whoever reads the projection.
 */
int
saga_plan_query(SagaPlanner *planner, Query *query, bool top)
{
	Query	   *order = NULL;
	int			stage;

	check_stack_depth();
	if (open_order_walker((Node *) query->targetList, NULL) ||
		open_order_walker(query->havingQual, NULL))
		planner->deterministic = false;
	saga_query_pull_up(query);
	if (query->limitCount != NULL || query->limitOffset != NULL)
	{
		planner->deterministic = false;
		if (saga_has_sublink(query->limitCount) ||
			saga_has_sublink(query->limitOffset))
			SAGA_REFUSE(errmsg("LIMIT cannot be a subquery"),
						errdetail("How many rows are shown would depend on tables."),
						errhint("Write a number, or use row_number()."));
		if (!top)
		{
			if (!saga_query_simple(query, true) && query->setOperations == NULL &&
				(grouped(query) || query->distinctClause != NIL) &&
				!query->hasDistinctOn)
				saga_cut_below_distinct(planner, query);
			else
				prepare(planner, query);
			return saga_plan_full(planner, query, false,
							"LIMIT inside the query chooses among all rows");
		}
	}
	if (top)
	{
		order = makeNode(Query);
		order->sortClause = query->sortClause;
		order->limitCount = query->limitCount;
		order->limitOffset = query->limitOffset;
		order->limitOption = query->limitOption;
		planner->order = query->sortClause;
		query->limitCount = query->limitOffset = NULL;
	}
	if (!top && !query->hasDistinctOn)
	{
		query->sortClause = NIL;
		if (query->setOperations == NULL)
			saga_drop_junk(planner, query, false);
	}
	else if (!query->hasDistinctOn)
		query->sortClause = NIL;

	stage = query->setOperations != NULL ?
		saga_plan_sets(planner, query, top) :
		plan_block(planner, query, top);
	if (top)
	{
		Query	   *view = ((SagaStage *) list_nth(planner->program->stages, stage))->block->view;

		view->sortClause = order->sortClause;
		view->limitCount = order->limitCount;
		view->limitOffset = order->limitOffset;
		view->limitOption = order->limitOption;
	}
	return stage;
}
