/*
 * projection_cut.c
 *		Cutting a query in two: one part becomes a stage, the other reads it.
 *
 * Called by projection_class.c, which decides where to cut.  Each function
 * changes the query it is given into the upper part.
 */
#include "postgres.h"

#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"

#include "projection_plan.h"

/* A query of the same FROM and WHERE that selects nothing yet. */
static Query *
same_from(Query *query)
{
	Query	   *result = makeNode(Query);

	result->commandType = CMD_SELECT;
	result->canSetTag = true;
	result->rtable = copyObject(query->rtable);
	result->jointree = copyObject(query->jointree);
	result->hasSubLinks = query->hasSubLinks;
	return result;
}

/* What 'expr' became in the select list of 'below' that is now a stage. */
static List *
stage_vars(SagaPlanner *planner, int stage)
{
	SagaStage  *s = list_nth(planner->program->stages, stage);
	List	   *vars = NIL;
	int			i = 0;
	ListCell   *lc;

	foreach(lc, s->block->out)
		vars = lappend(vars, saga_column_var(1, ++i, lfirst(lc)));
	return vars;
}

static void
read_stage_only(SagaPlanner *planner, Query *query, int stage)
{
	Query	   *from = saga_select_from(saga_stage_rte(planner, stage));

	query->rtable = from->rtable;
	query->jointree = from->jointree;
}

static void
select_all(Query *query, List *exprs)
{
	int			i = 0;
	ListCell   *lc;

	foreach(lc, exprs)
		saga_target(query, copyObject(lfirst(lc)), psprintf("c%d", ++i));
	if (exprs == NIL)
		saga_target(query, (Expr *) makeBoolConst(true, false), "c1");
}

List *
saga_nulls_for(List *exprs)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, exprs)
		result = lappend(result, makeNullConst(exprType(lfirst(lc)),
											   exprTypmod(lfirst(lc)),
											   exprCollation(lfirst(lc))));
	return result;
}

/*
 * The core becomes a stage that puts out just what the grouping above it
 * uses; the query then groups that stage.
 */
void
saga_cut_core(SagaPlanner *planner, Query *query)
{
	Query	   *core = same_from(query);
	List	   *exprs = NIL;
	List	   *above;
	ListCell   *lc;
	int			stage;

	foreach(lc, query->groupClause)
	{
		Node	   *expr = get_sortgroupclause_expr(lfirst(lc),
													query->targetList);

		if (saga_has_sublink(expr))
			exprs = list_append_unique(exprs, expr);
	}
	foreach(lc, saga_own_aggregates(query))
	{
		Aggref	   *agg = lfirst_node(Aggref, lc);
		ListCell   *a;

		foreach(a, agg->args)
		{
			Expr	   *expr = lfirst_node(TargetEntry, a)->expr;

			if (saga_has_sublink((Node *) expr))
				exprs = list_append_unique(exprs, expr);
		}
		if (saga_has_sublink((Node *) agg->aggfilter))
			exprs = list_append_unique(exprs, agg->aggfilter);
	}
	above = list_make2(query->targetList, query->havingQual);
	above = (List *) saga_replace_exprs((Node *) above, exprs, saga_nulls_for(exprs));
	foreach(lc, pull_vars_of_level((Node *) above, 0))
	{
		Var		   *var = copyObject(lfirst_node(Var, lc));

		var->varlevelsup = 0;
		exprs = list_append_unique(exprs, var);
	}
	select_all(core, exprs);
	stage = saga_stage_for(planner, core);
	query->targetList = (List *) saga_replace_exprs((Node *) query->targetList,
													exprs,
													stage_vars(planner, stage));
	query->havingQual = saga_replace_exprs(query->havingQual, exprs,
										   stage_vars(planner, stage));
	read_stage_only(planner, query, stage);
}

/* The grouping becomes a stage; what is computed from groups reads that. */
void
saga_cut_grouping(SagaPlanner *planner, Query *query)
{
	Query	   *below = same_from(query);
	List	   *exprs = NIL;
	ListCell   *lc;
	int			stage;

	saga_add_dependent_keys(query);
	foreach(lc, query->groupClause)
		exprs = list_append_unique(exprs,
								   get_sortgroupclause_expr(lfirst(lc),
															query->targetList));
	foreach(lc, query->groupClause)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);

		below->groupClause = lappend(below->groupClause, copyObject(clause));
	}
	exprs = list_concat(exprs, saga_own_aggregates(query));
	select_all(below, exprs);
	foreach(lc, below->groupClause)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		Expr	   *expr = get_sortgroupclause_tle(clause, query->targetList)->expr;
		ListCell   *t;

		foreach(t, below->targetList)
		{
			TargetEntry *tle = lfirst_node(TargetEntry, t);

			if (!equal(tle->expr, expr))
				continue;
			if (tle->ressortgroupref == 0)
				tle->ressortgroupref = clause->tleSortGroupRef;
			else
				clause->tleSortGroupRef = tle->ressortgroupref;
			break;
		}
	}
	below->hasAggs = query->hasAggs;
	stage = saga_stage_for(planner, below);
	query->targetList = (List *) saga_replace_exprs((Node *) query->targetList,
													exprs,
													stage_vars(planner, stage));
	query->havingQual = saga_replace_exprs(query->havingQual, exprs,
										   stage_vars(planner, stage));
	read_stage_only(planner, query, stage);
	query->jointree->quals = query->havingQual;
	query->havingQual = NULL;
	query->groupClause = NIL;
	query->hasAggs = false;
}

/* All but DISTINCT, ORDER BY and LIMIT becomes a stage. */
void
saga_cut_below_distinct(SagaPlanner *planner, Query *query)
{
	Query	   *below = copyObject(query);
	ListCell   *lc;
	ListCell   *v;
	int			stage;

	below->distinctClause = NIL;
	below->hasDistinctOn = false;
	below->sortClause = NIL;
	below->limitCount = below->limitOffset = NULL;
	foreach(lc, below->targetList)
		lfirst_node(TargetEntry, lc)->resjunk = false;
	stage = saga_stage_for(planner, below);
	read_stage_only(planner, query, stage);
	forboth(lc, query->targetList, v, stage_vars(planner, stage))
		lfirst_node(TargetEntry, lc)->expr = lfirst(v);
	query->groupClause = NIL;
	query->havingQual = NULL;
	query->windowClause = NIL;
	query->hasAggs = query->hasWindowFuncs = query->hasTargetSRFs = false;
}

/* Entries of the select list that nothing needs any more. */
void
saga_drop_junk(SagaPlanner *planner, Query *query, bool top)
{
	List	   *result = NIL;
	List	   *refs = NIL;
	ListCell   *lc;

	refs = list_concat(list_copy(query->groupClause), query->distinctClause);
	refs = list_concat(refs, query->sortClause);
	if (top)
		refs = list_concat(refs, planner->order);
	foreach(lc, query->windowClause)
	{
		WindowClause *window = lfirst_node(WindowClause, lc);

		refs = list_concat(refs, window->partitionClause);
		refs = list_concat(refs, window->orderClause);
	}
	foreach(lc, query->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (tle->resjunk &&
			get_sortgroupref_clause_noerr(tle->ressortgroupref, refs) == NULL)
			continue;
		result = lappend(result, tle);
		tle->resno = list_length(result);
	}
	query->targetList = result;
}
