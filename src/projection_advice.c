/*
 * projection_advice.c
 *		Indexes that upkeep would profit from and that are not there.
 *
 * Called by projection_program.c.  When one table of a join changes, the others
 * are looked up by the columns they are joined on; groups that are read
 * again, by their keys.  One index led by any of the columns will do.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "nodes/nodeFuncs.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "projection_plan.h"

/* Tables known to be smaller are read whole just as well. */
#define SMALL_TABLE 1000

/* Columns of one table that are compared with one other thing. */
typedef struct Lookup
{
	RangeTblEntry *rte;
	void	   *other;
	List	   *columns;		/* attribute numbers */
} Lookup;

typedef struct AdviceContext
{
	List	   *queries;		/* the levels being walked, innermost first */
	List	   *lookups;
} AdviceContext;

static RangeTblEntry *
entry_of(AdviceContext *context, Node *node, AttrNumber *attno)
{
	Var		   *var = (Var *) node;

	if (IsA(node, RelabelType))
		var = (Var *) ((RelabelType *) node)->arg;
	if (!IsA(var, Var) || var->varattno <= 0 ||
		(int) var->varlevelsup >= list_length(context->queries))
		return NULL;
	*attno = var->varattno;
	return rt_fetch(var->varno,
					((Query *) list_nth(context->queries, var->varlevelsup))->rtable);
}

static void
note_lookup(AdviceContext *context, RangeTblEntry *rte, AttrNumber attno,
			void *other)
{
	Lookup	   *lookup;
	ListCell   *lc;

	if (rte == NULL || rte->rtekind != RTE_RELATION || rte == other)
		return;
	foreach(lc, context->lookups)
	{
		lookup = lfirst(lc);
		if (lookup->rte == rte && lookup->other == other)
		{
			lookup->columns = list_append_unique_int(lookup->columns, attno);
			return;
		}
	}
	lookup = palloc0(sizeof(Lookup));
	lookup->rte = rte;
	lookup->other = other;
	lookup->columns = list_make1_int(attno);
	context->lookups = lappend(context->lookups, lookup);
}

static void
note_equality(AdviceContext *context, OpExpr *op, Query *sub)
{
	RangeTblEntry *sides[2];
	AttrNumber	attnos[2] = {0, 0};

	if (list_length(op->args) != 2 ||
		!op_mergejoinable(op->opno, exprType(linitial(op->args))))
		return;
	for (int i = 0; i < 2; i++)
	{
		Node	   *arg = list_nth(op->args, i);

		if (IsA(arg, RelabelType))
			arg = (Node *) ((RelabelType *) arg)->arg;
		if (sub != NULL && IsA(arg, Param))
		{
			TargetEntry *tle = get_tle_by_resno(sub->targetList,
												((Param *) arg)->paramid);

			context->queries = lcons(sub, context->queries);
			sides[i] = tle == NULL ? NULL :
				entry_of(context, (Node *) tle->expr, &attnos[i]);
			context->queries = list_delete_first(context->queries);
		}
		else
			sides[i] = entry_of(context, arg, &attnos[i]);
	}
	if (sides[0] == NULL || sides[1] == NULL || sides[0] == sides[1])
		return;
	note_lookup(context, sides[0], attnos[0], sides[1]);
	note_lookup(context, sides[1], attnos[1], sides[0]);
}

static bool
advice_walker(Node *node, AdviceContext *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, OpExpr))
		note_equality(context, (OpExpr *) node, NULL);
	else if (IsA(node, SubLink) &&
			 ((SubLink *) node)->subLinkType == ANY_SUBLINK)
	{
		SubLink    *link = (SubLink *) node;
		ListCell   *lc;

		foreach(lc, is_andclause(link->testexpr) ?
				((BoolExpr *) link->testexpr)->args : list_make1(link->testexpr))
			if (IsA(lfirst(lc), OpExpr))
				note_equality(context, lfirst(lc), (Query *) link->subselect);
	}
	else if (IsA(node, Query))
	{
		context->queries = lcons(node, context->queries);
		query_tree_walker((Query *) node, advice_walker, (void *) context,
						  QTW_IGNORE_JOINALIASES);
		context->queries = list_delete_first(context->queries);
		return false;
	}
	return expression_tree_walker(node, advice_walker, (void *) context);
}

/* Is there an index led by one of the columns? */
static bool
has_index(Oid relid, List *columns, bool *small)
{
	Relation	rel = table_open(relid, AccessShareLock);
	bool		result = false;
	ListCell   *lc;

	*small = rel->rd_rel->reltuples >= 0 && rel->rd_rel->reltuples < SMALL_TABLE &&
		rel->rd_rel->relkind == RELKIND_RELATION;
	foreach(lc, RelationGetIndexList(rel))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (index->rd_index->indisvalid &&
			RelationGetIndexPredicate(index) == NIL &&
			list_member_int(columns, index->rd_index->indkey.values[0]))
			result = true;
		index_close(index, NoLock);
	}
	table_close(rel, NoLock);
	return result;
}

static char *
create_index(SagaProgram *program, Oid relid, List *columns)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, columns)
		appendStringInfo(&buf, "%s%s", buf.len == 0 ? "" : ", ",
						 quote_identifier(get_attname(relid, lfirst_int(lc), false)));
	foreach(lc, program->sources)
		if (((SagaSource *) lfirst(lc))->relid == relid)
			return psprintf("CREATE INDEX ON %s (%s)",
							((SagaSource *) lfirst(lc))->name, buf.data);
	return NULL;
}

/* Keys by which rows are read again: looked up together. */
static void
note_keys(AdviceContext *context, Query *query, List *keys)
{
	ListCell   *lc;

	context->queries = list_make1(query);
	foreach(lc, keys)
	{
		AttrNumber	attno = 0;
		RangeTblEntry *rte = entry_of(context, lfirst(lc), &attno);

		note_lookup(context, rte, attno, query);
	}
}

void
saga_stage_advise(SagaProgram *program, SagaStage *stage)
{
	SagaBlock  *block = stage->block;
	AdviceContext context = {NIL, NIL};
	List	   *advice = NIL;
	ListCell   *lc;

	if (block->kind == SAGA_BLOCK_FULL)
		return;
	foreach(lc, block->cores)
	{
		Query	   *core = lfirst_node(Query, lc);

		advice_walker((Node *) core, &context);
		if (stage->class == SAGA_CLASS_MIN_MAX)
		{
			List	   *keys = NIL;

			for (int i = 0; i < block->nkeys; i++)
				keys = lappend(keys, ((TargetEntry *) list_nth(core->targetList, i))->expr);
			note_keys(&context, core, keys);
		}
	}
	if (block->query != NULL)
	{
		context.queries = NIL;
		advice_walker((Node *) block->query, &context);
		note_keys(&context, block->query, block->keys);
	}
	foreach(lc, context.lookups)
	{
		Lookup	   *lookup = lfirst(lc);
		bool		small;
		char	   *text;
		ListCell   *other;
		bool		known = false;

		if (has_index(lookup->rte->relid, lookup->columns, &small) || small)
			continue;
		text = create_index(program, lookup->rte->relid, lookup->columns);
		foreach(other, advice)
			if (strcmp(lfirst(other), text) == 0)
				known = true;
		if (!known)
			advice = lappend(advice, text);
	}
	stage->advice = advice;
}
