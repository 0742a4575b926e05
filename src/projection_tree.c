/*
 * projection_tree.c
 *		Tools on query trees for the planner of projections.
 *
 * Called by projection_*.c of the planner only (see projection_plan.h).
 * Nothing here decides anything; catalogs are read through the caches.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteManip.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "projection_plan.h"

/* ---- mapping ---- */

typedef struct MapContext
{
	SagaVarMapper mapper;
	void	   *arg;
	int			depth;
} MapContext;

static Node *
map_vars_mutator(Node *node, MapContext *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Var))
	{
		Var		   *var = copyObject((Var *) node);
		Node	   *result;

		if ((int) var->varlevelsup != context->depth)
			return (Node *) var;
		var->varlevelsup = 0;
		result = context->mapper(var, context->arg);
		if (result == NULL)
			return copyObject(node);
		result = copyObject(result);
		if (context->depth > 0)
			IncrementVarSublevelsUp(result, context->depth, 0);
		return result;
	}
	if (IsA(node, Query))
	{
		Query	   *result;

		context->depth++;
		result = query_tree_mutator((Query *) node, map_vars_mutator,
									(void *) context, QTW_IGNORE_JOINALIASES);
		context->depth--;
		return (Node *) result;
	}
	return expression_tree_mutator(node, map_vars_mutator, (void *) context);
}

/*
 * A copy in which the mapper replaced the Vars of the level of 'node' (of its
 * own level, if it is a Query), at whatever depth they are used.
 */
Node *
saga_map_vars(Node *node, SagaVarMapper mapper, void *arg)
{
	MapContext	context = {mapper, arg, 0};

	return query_or_expression_tree_mutator(node, map_vars_mutator,
											(void *) &context,
											QTW_IGNORE_JOINALIASES);
}

typedef struct ReplaceContext
{
	List	   *from;
	List	   *to;
	int			depth;
} ReplaceContext;

static Node *
replace_exprs_mutator(Node *node, ReplaceContext *context)
{
	ListCell   *f;
	ListCell   *t;

	if (node == NULL)
		return NULL;
	if (IsA(node, Query))
	{
		Query	   *result;

		context->depth++;
		result = query_tree_mutator((Query *) node, replace_exprs_mutator,
									(void *) context, QTW_IGNORE_JOINALIASES);
		context->depth--;
		return (Node *) result;
	}
	forboth(f, context->from, t, context->to)
	{
		Node	   *from = lfirst(f);

		if (nodeTag(from) != nodeTag(node))
			continue;
		if (context->depth > 0)
		{
			from = copyObject(from);
			IncrementVarSublevelsUp(from, context->depth, 0);
		}
		if (equal(from, node))
		{
			Node	   *to = copyObject(lfirst(t));

			if (context->depth > 0)
				IncrementVarSublevelsUp(to, context->depth, 0);
			return to;
		}
	}
	return expression_tree_mutator(node, replace_exprs_mutator,
								   (void *) context);
}

/* A copy in which expressions of 'from' became those of 'to'. */
Node *
saga_replace_exprs(Node *node, List *from, List *to)
{
	ReplaceContext context = {from, to, 0};

	return replace_exprs_mutator(node, &context);
}

static bool
sublink_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, SubLink))
		return true;
	if (IsA(node, RangeTblRef))
		return false;
	return expression_tree_walker(node, sublink_walker, context);
}

/* Not looking into subqueries of FROM. */
bool
saga_has_sublink(Node *node)
{
	return sublink_walker(node, NULL);
}

bool
saga_has_outer_join(Node *jointree)
{
	if (jointree == NULL)
		return false;
	if (IsA(jointree, FromExpr))
	{
		ListCell   *lc;

		foreach(lc, ((FromExpr *) jointree)->fromlist)
			if (saga_has_outer_join(lfirst(lc)))
				return true;
	}
	else if (IsA(jointree, JoinExpr))
	{
		JoinExpr   *join = (JoinExpr *) jointree;

		return join->jointype != JOIN_INNER ||
			saga_has_outer_join(join->larg) ||
			saga_has_outer_join(join->rarg);
	}
	return false;
}

/* The items of a jointree of inner joins, and all its conditions. */
void
saga_from_list(Node *jointree, List **items, List **quals)
{
	if (jointree == NULL)
		return;
	if (IsA(jointree, RangeTblRef))
		*items = lappend(*items, jointree);
	else if (IsA(jointree, FromExpr))
	{
		FromExpr   *from = (FromExpr *) jointree;
		ListCell   *lc;

		foreach(lc, from->fromlist)
			saga_from_list(lfirst(lc), items, quals);
		*quals = list_concat(*quals, make_ands_implicit((Expr *) from->quals));
	}
	else
	{
		JoinExpr   *join = castNode(JoinExpr, jointree);

		Assert(join->jointype == JOIN_INNER);
		saga_from_list(join->larg, items, quals);
		saga_from_list(join->rarg, items, quals);
		*quals = list_concat(*quals, make_ands_implicit((Expr *) join->quals));
	}
}

/* ---- columns ---- */

SagaColumn *
saga_column(const char *name, Oid type, int32 typmod, Oid collation)
{
	SagaColumn *column = palloc0(sizeof(SagaColumn));

	column->name = pstrdup(name);
	column->type = type;
	column->typmod = typmod;
	column->collation = collation;
	return column;
}

SagaColumn *
saga_column_of_expr(const char *name, Node *expr)
{
	return saga_column(name, exprType(expr), exprTypmod(expr),
					   exprCollation(expr));
}

Var *
saga_column_var(int varno, int attno, SagaColumn *column)
{
	return makeVar(varno, attno, column->type, column->typmod,
				   column->collation, 0);
}

/* What a target list puts out. */
List *
saga_target_columns(List *targetlist)
{
	List	   *columns = NIL;
	ListCell   *lc;

	foreach(lc, targetlist)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (!tle->resjunk)
			columns = lappend(columns,
							  saga_column_of_expr(tle->resname,
												  (Node *) tle->expr));
	}
	return columns;
}

TupleDesc
saga_columns_desc(List *columns)
{
	TupleDesc	desc = CreateTemplateTupleDesc(list_length(columns));
	AttrNumber	attno = 0;
	ListCell   *lc;

	foreach(lc, columns)
	{
		SagaColumn *column = lfirst(lc);

		attno++;
		TupleDescInitEntry(desc, attno, column->name, column->type,
						   column->typmod, 0);
		TupleDescInitEntryCollation(desc, attno, column->collation);
	}
	return desc;
}

/* ---- making trees ---- */

RangeTblEntry *
saga_enr_rte(const char *name, const char *alias, List *columns)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	ListCell   *lc;

	rte->rtekind = RTE_NAMEDTUPLESTORE;
	rte->enrname = pstrdup(name);
	rte->alias = makeAlias(alias, NIL);
	rte->eref = makeAlias(alias, NIL);
	rte->inFromCl = true;
	foreach(lc, columns)
	{
		SagaColumn *column = lfirst(lc);

		rte->eref->colnames = lappend(rte->eref->colnames,
									  makeString(pstrdup(column->name)));
		rte->coltypes = lappend_oid(rte->coltypes, column->type);
		rte->coltypmods = lappend_int(rte->coltypmods, column->typmod);
		rte->colcollations = lappend_oid(rte->colcollations,
										 column->collation);
	}
	return rte;
}

/* SELECT (nothing yet) FROM rte */
Query *
saga_select_from(RangeTblEntry *rte)
{
	Query	   *query = makeNode(Query);
	RangeTblRef *ref = makeNode(RangeTblRef);

	query->commandType = CMD_SELECT;
	query->canSetTag = true;
	query->rtable = list_make1(rte);
	ref->rtindex = 1;
	query->jointree = makeFromExpr(list_make1(ref), NULL);
	return query;
}

TargetEntry *
saga_target(Query *query, Expr *expr, const char *name)
{
	TargetEntry *tle = makeTargetEntry(expr,
									   list_length(query->targetList) + 1,
									   pstrdup(name), false);

	query->targetList = lappend(query->targetList, tle);
	return tle;
}

/* left = right by the type's own notion of equality. */
Expr *
saga_equal(Expr *left, Expr *right)
{
	Oid			type = exprType((Node *) left);
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_EQ_OPR);
	Expr	   *result;

	if (!OidIsValid(entry->eq_opr))
		elog(ERROR, "type %u has no equality", type);
	result = make_opclause(entry->eq_opr, BOOLOID, false, left, right,
						   InvalidOid, exprCollation((Node *) left));
	set_opfuncid((OpExpr *) result);
	return result;
}

/* ---- what is known ---- */

static bool
is_number(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID ||
		type == NUMERICOID;
}

/* Of an expression over relations that no outer join extends by nulls. */
bool
saga_expr_notnull(Query *query, Node *expr)
{
	if (expr == NULL)
		return false;
	switch (nodeTag(expr))
	{
		case T_Const:
			return !((Const *) expr)->constisnull;
		case T_RelabelType:
			return saga_expr_notnull(query, (Node *) ((RelabelType *) expr)->arg);
		case T_CoalesceExpr:
			{
				ListCell   *lc;

				foreach(lc, ((CoalesceExpr *) expr)->args)
					if (saga_expr_notnull(query, lfirst(lc)))
						return true;
				return false;
			}
		case T_Var:
			{
				Var		   *var = (Var *) expr;
				RangeTblEntry *rte;
				HeapTuple	tuple;
				bool		result;

				if (var->varlevelsup != 0)
					return false;
				rte = rt_fetch(var->varno, query->rtable);
				if (rte->rtekind != RTE_RELATION || var->varattno == 0)
					return false;
				if (var->varattno < 0)
					return true;
				tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(rte->relid),
										Int16GetDatum(var->varattno));
				if (!HeapTupleIsValid(tuple))
					return false;
				result = ((Form_pg_attribute) GETSTRUCT(tuple))->attnotnull;
				ReleaseSysCache(tuple);
				return result;
			}
		case T_OpExpr:
			{
				OpExpr	   *op = (OpExpr *) expr;
				char	   *name;
				ListCell   *lc;

				/* built-in arithmetic of numbers never makes a null */
				if (op->opno >= FirstGenbkiObjectId)
					return false;
				if (!is_number(op->opresulttype))
					return false;
				name = get_opname(op->opno);
				if (name == NULL || strlen(name) != 1 ||
					strchr("+-*/%", name[0]) == NULL)
					return false;
				foreach(lc, op->args)
				{
					if (!is_number(exprType(lfirst(lc))) ||
						!saga_expr_notnull(query, lfirst(lc)))
						return false;
				}
				return true;
			}
		case T_FuncExpr:
			{
				FuncExpr   *func = (FuncExpr *) expr;

				/* casts between numbers */
				if ((func->funcformat != COERCE_EXPLICIT_CAST &&
					 func->funcformat != COERCE_IMPLICIT_CAST) ||
					func->funcid >= FirstGenbkiObjectId ||
					!is_number(func->funcresulttype) ||
					!is_number(exprType(linitial(func->args))))
					return false;
				return saga_expr_notnull(query, linitial(func->args));
			}
		default:
			return false;
	}
}

/* Number of the stage that an entry refers to, or -1. */
int
saga_rte_stage(const RangeTblEntry *rte)
{
	int			number;

	if (rte->rtekind == RTE_NAMEDTUPLESTORE &&
		sscanf(rte->enrname, "saga:stage %d", &number) == 1)
		return number;
	return -1;
}

/* A source or a stage? */
bool
saga_rte_input(const RangeTblEntry *rte)
{
	return rte->rtekind == RTE_RELATION || saga_rte_stage(rte) >= 0;
}

typedef struct CollectContext
{
	List	   *relids;
	Bitmapset  *stages;
} CollectContext;

static bool
collect_walker(Node *node, CollectContext *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;
		int			stage = saga_rte_stage(rte);

		if (rte->rtekind == RTE_RELATION)
			context->relids = list_append_unique_oid(context->relids,
													 rte->relid);
		if (stage >= 0)
			context->stages = bms_add_member(context->stages, stage);
		return false;
	}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, collect_walker,
								 (void *) context,
								 QTW_EXAMINE_RTES_BEFORE |
								 QTW_IGNORE_JOINALIASES);
	return expression_tree_walker(node, collect_walker, (void *) context);
}

/* Which tables and stages a tree reads. */
void
saga_collect_inputs(Node *node, List **relids, Bitmapset **stages)
{
	CollectContext context = {*relids, *stages};

	collect_walker(node, &context);
	*relids = context.relids;
	*stages = context.stages;
}

/* Attribute numbers of the index if it identifies rows for ever, or NIL. */
static List *
index_key(Relation index)
{
	Form_pg_index form = index->rd_index;
	List	   *result = NIL;

	if (!form->indisunique || !form->indisvalid || !form->indimmediate ||
		RelationGetIndexExpressions(index) != NIL ||
		RelationGetIndexPredicate(index) != NIL)
		return NIL;
	for (int i = 0; i < form->indnkeyatts; i++)
	{
		AttrNumber	attno = form->indkey.values[i];
		HeapTuple	tuple;
		bool		notnull;

		if (attno <= 0)
			return NIL;
		tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(form->indrelid),
								Int16GetDatum(attno));
		if (!HeapTupleIsValid(tuple))
			return NIL;
		notnull = ((Form_pg_attribute) GETSTRUCT(tuple))->attnotnull;
		ReleaseSysCache(tuple);
		if (!notnull)
			return NIL;
		result = lappend_int(result, attno);
	}
	return result;
}

/* Columns (attribute numbers) that identify a row of an input, or NIL. */
List *
saga_unique_key(SagaProgram *program, const RangeTblEntry *rte)
{
	int			stage = saga_rte_stage(rte);
	List	   *best = NIL;
	Relation	rel;
	ListCell   *lc;

	if (stage >= 0)
		return ((SagaStage *) list_nth(program->stages, stage))->block->unique;
	if (rte->rtekind != RTE_RELATION)
		return NIL;
	/* children of an inheritance parent have keys of their own */
	if (rte->relkind != RELKIND_PARTITIONED_TABLE &&
		rte->inh && has_subclass(rte->relid))
		return NIL;

	rel = table_open(rte->relid, AccessShareLock);
	foreach(lc, RelationGetIndexList(rel))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		List	   *key = index_key(index);

		if (key != NIL &&
			(best == NIL || index->rd_index->indisprimary ||
			 list_length(key) < list_length(best)))
			best = key;
		if (key != NIL && index->rd_index->indisprimary)
		{
			index_close(index, NoLock);
			break;
		}
		index_close(index, NoLock);
	}
	table_close(rel, NoLock);
	return best;
}

Var *
saga_var_of(Query *query, int rtindex, AttrNumber attno)
{
	RangeTblEntry *rte = rt_fetch(rtindex, query->rtable);
	Oid			type;
	int32		typmod;
	Oid			collation;

	if (rte->rtekind == RTE_RELATION)
		get_atttypetypmodcoll(rte->relid, attno, &type, &typmod, &collation);
	else
	{
		type = list_nth_oid(rte->coltypes, attno - 1);
		typmod = list_nth_int(rte->coltypmods, attno - 1);
		collation = list_nth_oid(rte->colcollations, attno - 1);
	}
	return makeVar(rtindex, attno, type, typmod, collation, 0);
}

/* A stage that always holds one row? */
bool
saga_one_row(SagaProgram *program, const RangeTblEntry *rte)
{
	int			stage = saga_rte_stage(rte);

	return stage >= 0 &&
		((SagaStage *) list_nth(program->stages, stage))->block->one_group;
}

/* A whole row of what became a delta must not show the weight. */
Node *
saga_whole_row(Query *query, Var *var)
{
	RangeTblEntry *rte = rt_fetch(var->varno, query->rtable);
	RowExpr    *row;
	int			attno = 0;
	ListCell   *lc;

	if (var->varattno != 0 || rte->rtekind != RTE_NAMEDTUPLESTORE)
		return (Node *) var;
	row = makeNode(RowExpr);
	row->row_typeid = var->vartype;
	row->row_format = COERCE_EXPLICIT_CAST;
	row->location = -1;
	foreach(lc, rte->coltypes)
	{
		const char *name = strVal(list_nth(rte->eref->colnames, attno));

		attno++;
		if (!OidIsValid(lfirst_oid(lc)))
		{
			row->args = lappend(row->args, makeNullConst(INT4OID, -1, InvalidOid));
			row->colnames = lappend(row->colnames, makeString(""));
			continue;
		}
		if (strcmp(name, SAGA_WEIGHT) == 0)
			continue;
		row->args = lappend(row->args, saga_var_of(query, var->varno, attno));
		row->colnames = lappend(row->colnames, makeString(pstrdup(name)));
	}
	return (Node *) row;
}

/* Do sublinks of an expression read nothing but stages of one row? */
static bool
one_rows_walker(Node *node, SagaProgram *program)
{
	if (node == NULL)
		return false;
	if (IsA(node, SubLink))
	{
		SubLink    *link = (SubLink *) node;
		Query	   *sub = castNode(Query, link->subselect);

		if (link->subLinkType != EXPR_SUBLINK ||
			list_length(sub->rtable) != 1 || sub->jointree->quals != NULL ||
			!saga_one_row(program, linitial(sub->rtable)))
			return true;
		return false;
	}
	return expression_tree_walker(node, one_rows_walker, (void *) program);
}

bool
saga_reads_one_rows(SagaProgram *program, Node *expr)
{
	return !one_rows_walker(expr, program);
}
