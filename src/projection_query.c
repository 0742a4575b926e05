/*
 * projection_query.c
 *		From the text of a projection to a query tree in normal form.
 *
 * Called by projection_class.c.  Views, and the views of other projections,
 * become subqueries; CTEs too (none is volatile), but recursive ones, which
 * stay inside a subquery of their own; Vars of joins become Vars of tables;
 * nothing but what is in FROM stays in a range table.  Reads
 * saga.projection; writes nothing.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "rewrite/rewriteManip.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "compat.h"
#include "projection_plan.h"
#include "spi_util.h"

static void expand_views(Query *query, int depth);

static List *views_read = NIL;	/* of Oid: expanded in the query at hand */

/* ---- parsing ---- */

static Query *
analyze_text(const char *text)
{
	List	   *raw = raw_parser(text, RAW_PARSE_DEFAULT);
	RawStmt    *stmt;
	Query	   *query;

	if (list_length(raw) != 1 ||
		!IsA(linitial_node(RawStmt, raw)->stmt, SelectStmt))
		SAGA_REFUSE(errmsg("a projection is defined by one SELECT"),
					errdetail("The text is another statement, or more than one."),
					errhint("Give one SELECT; WITH is allowed before it."));
	stmt = linitial_node(RawStmt, raw);
	query = parse_analyze_fixedparams(stmt, text, NULL, 0, NULL);
	if (query->commandType != CMD_SELECT)
		SAGA_REFUSE(errmsg("SELECT INTO cannot define a projection"),
					errdetail("It would create a table."),
					errhint("Leave INTO out."));
	return query;
}

/* The query behind a view that is the face of a projection. */
bool
saga_projection_of_view(Oid relid, char **query, char **search_path)
{
	MemoryContext context = CurrentMemoryContext;
	SagaUserSwitch save;
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(relid)};
	bool		found;

	saga_as_extension_owner_begin(&save);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args("SELECT query, search_path FROM saga.projection WHERE view = $1",
							  1, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "cannot read saga.projection");
	found = SPI_processed == 1;
	if (found)
	{
		char	   *q = SPI_getvalue(SPI_tuptable->vals[0],
									 SPI_tuptable->tupdesc, 1);
		char	   *p = SPI_getvalue(SPI_tuptable->vals[0],
									 SPI_tuptable->tupdesc, 2);

		*query = MemoryContextStrdup(context, q);
		*search_path = MemoryContextStrdup(context, p);
	}
	SPI_finish();
	saga_as_extension_owner_end(&save);
	return found;
}

static Query *
projection_query(const char *text, const char *search_path, int depth)
{
	int			nestlevel = NewGUCNestLevel();
	Query	   *query;

	(void) set_config_option("search_path",
							 psprintf("%s%spg_temp", search_path,
									  search_path[0] == '\0' ? "" : ", "),
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	query = analyze_text(text);
	AtEOXact_GUC(false, nestlevel);
	expand_views(query, depth);
	return query;
}

/* ---- what FROM names ---- */

static void
mark_used(Node *jointree, Bitmapset **used)
{
	if (jointree == NULL)
		return;
	if (IsA(jointree, RangeTblRef))
		*used = bms_add_member(*used, ((RangeTblRef *) jointree)->rtindex);
	else if (IsA(jointree, FromExpr))
	{
		ListCell   *lc;

		foreach(lc, ((FromExpr *) jointree)->fromlist)
			mark_used(lfirst(lc), used);
	}
	else if (IsA(jointree, JoinExpr))
	{
		JoinExpr   *join = (JoinExpr *) jointree;

		*used = bms_add_member(*used, join->rtindex);
		mark_used(join->larg, used);
		mark_used(join->rarg, used);
	}
	else
	{
		SetOperationStmt *set = castNode(SetOperationStmt, jointree);

		mark_used(set->larg, used);
		mark_used(set->rarg, used);
	}
}

/* Entries outside FROM (OLD and NEW of a view) must not be taken for sources. */
static void
blank_unused(Query *query)
{
	Bitmapset  *used = NULL;
	int			i = 0;
	ListCell   *lc;

	mark_used((Node *) query->jointree, &used);
	mark_used(query->setOperations, &used);
	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		if (!bms_is_member(++i, used))
		{
			rte = makeNode(RangeTblEntry);
			rte->rtekind = RTE_RESULT;
			rte->eref = makeAlias("unused", NIL);
			lfirst(lc) = rte;
		}
		saga_rte_forget_perminfo(rte);
	}
}

static Query *
view_query(Oid relid, int depth)
{
	Relation	rel;
	Query	   *query;
	char	   *text;
	char	   *search_path;

	check_stack_depth();
	if (saga_projection_of_view(relid, &text, &search_path))
		return projection_query(text, search_path, depth + 1);

	rel = table_open(relid, AccessShareLock);
	query = copyObject(get_view_query(rel));
	table_close(rel, NoLock);
	AcquireRewriteLocks(query, false, false);
	expand_views(query, depth + 1);
	return query;
}

typedef struct ExpandContext
{
	int			depth;
} ExpandContext;

static bool
expand_views_walker(Node *node, ExpandContext *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
	{
		expand_views((Query *) node, context->depth);
		return false;
	}
	return expression_tree_walker(node, expand_views_walker, (void *) context);
}

static void
expand_views(Query *query, int depth)
{
	ExpandContext context = {depth};
	ListCell   *lc;

	if (depth > 64)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("views are nested too deeply")));
	saga_flatten_group(query);
	blank_unused(query);

	/* first what is there, so that what comes in is walked only once */
	query_tree_walker(query, expand_views_walker, (void *) &context,
					  QTW_IGNORE_JOINALIASES);
	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		if (rte->rtekind != RTE_RELATION || rte->relkind != RELKIND_VIEW)
			continue;
		views_read = list_append_unique_oid(views_read, rte->relid);
		rte->subquery = view_query(rte->relid, depth);
		rte->rtekind = RTE_SUBQUERY;
		rte->relid = InvalidOid;
		rte->relkind = 0;
		rte->rellockmode = 0;
		rte->inh = false;
		rte->tablesample = NULL;
		/* columns may have been named otherwise than in the view's query */
		rte->alias = copyObject(rte->eref);
	}
}

/* ---- common table expressions ---- */

typedef struct InlineContext
{
	const char *name;
	Query	   *query;
	int			depth;
} InlineContext;

static bool
inline_cte_walker(Node *node, InlineContext *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
	{
		context->depth++;
		(void) query_tree_walker((Query *) node, inline_cte_walker,
								 (void *) context,
								 QTW_EXAMINE_RTES_AFTER |
								 QTW_IGNORE_JOINALIASES);
		context->depth--;
		return false;
	}
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;

		if (rte->rtekind == RTE_CTE && !rte->self_reference &&
			strcmp(rte->ctename, context->name) == 0 &&
			(int) rte->ctelevelsup == context->depth)
		{
			Query	   *query = copyObject(context->query);

			if (context->depth > 0)
				IncrementVarSublevelsUp((Node *) query, context->depth, 1);
			rte->rtekind = RTE_SUBQUERY;
			rte->subquery = query;
			rte->ctename = NULL;
			rte->ctelevelsup = 0;
			rte->coltypes = rte->coltypmods = rte->colcollations = NIL;
			rte->alias = copyObject(rte->eref);
		}
		return false;
	}
	return expression_tree_walker(node, inline_cte_walker, (void *) context);
}

/* SELECT * FROM cte, with the recursive cte in its own WITH. */
static Query *
recursive_query(CommonTableExpr *cte)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	Query	   *query;
	AttrNumber	attno = 0;
	ListCell   *name;
	ListCell   *type;
	ListCell   *typmod;
	ListCell   *collation;

	rte->rtekind = RTE_CTE;
	rte->ctename = pstrdup(cte->ctename);
	rte->alias = makeAlias("r", NIL);
	rte->eref = makeAlias("r", copyObject(cte->ctecolnames));
	rte->coltypes = list_copy(cte->ctecoltypes);
	rte->coltypmods = list_copy(cte->ctecoltypmods);
	rte->colcollations = list_copy(cte->ctecolcollations);
	rte->inFromCl = true;
	query = saga_select_from(rte);
	query->hasRecursive = true;
	query->cteList = list_make1(copyObject(cte));
	forfour(name, cte->ctecolnames, type, cte->ctecoltypes,
			typmod, cte->ctecoltypmods, collation, cte->ctecolcollations)
		saga_target(query, (Expr *) makeVar(1, ++attno, lfirst_oid(type),
											lfirst_int(typmod),
											lfirst_oid(collation), 0),
					strVal(lfirst(name)));
	/* what the WITH refers to is one level further away now */
	IncrementVarSublevelsUp((Node *) query->cteList, 1, 1);
	return query;
}

static bool inline_ctes_walker(Node *node, void *context);

static void
inline_ctes(Query *query)
{
	List	   *ctes = query->cteList;
	bool		recursive = query->hasRecursive;
	ListCell   *lc;

	/* the levels below first: their WITH lists may use ours, not conversely */
	query_tree_walker(query, inline_ctes_walker, NULL, QTW_IGNORE_JOINALIASES);

	query->cteList = NIL;
	query->hasRecursive = false;
	while (ctes != NIL)
	{
		CommonTableExpr *cte = linitial_node(CommonTableExpr, ctes);
		InlineContext context;

		ctes = list_delete_first(ctes);
		context.name = cte->ctename;
		context.depth = -1;
		if (recursive && cte->cterecursive)
			context.query = recursive_query(cte);
		else
			context.query = castNode(Query, cte->ctequery);
		inline_cte_walker((Node *) query, &context);
		/* later ones of the same list are one level below it */
		foreach(lc, ctes)
		{
			context.depth = 0;
			inline_cte_walker(lfirst_node(CommonTableExpr, lc)->ctequery,
							  &context);
		}
	}
}

static bool
inline_ctes_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
	{
		inline_ctes((Query *) node);
		return false;
	}
	return expression_tree_walker(node, inline_ctes_walker, context);
}

/* ---- joins ---- */

static bool flatten_joins_walker(Node *node, void *context);

/* No names of their own, and none to the right. */
static void
plain_joins(Query *query, Node *jointree)
{
	if (IsA(jointree, FromExpr))
	{
		ListCell   *lc;

		foreach(lc, ((FromExpr *) jointree)->fromlist)
			plain_joins(query, lfirst(lc));
	}
	else if (IsA(jointree, JoinExpr))
	{
		JoinExpr   *join = (JoinExpr *) jointree;

		join->alias = NULL;
		join->usingClause = NIL;
		join->join_using_alias = NULL;
		join->isNatural = false;
		if (join->jointype == JOIN_RIGHT)
		{
			Node	   *larg = join->larg;

			join->larg = join->rarg;
			join->rarg = larg;
			join->jointype = JOIN_LEFT;
			rt_fetch(join->rtindex, query->rtable)->jointype = JOIN_LEFT;
		}
		plain_joins(query, join->larg);
		plain_joins(query, join->rarg);
	}
}

/* The columns as the catalog names them, whatever aliases the query gave. */
static void
plain_columns(RangeTblEntry *rte)
{
	Relation	rel = table_open(rte->relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);

	rte->alias = makeAlias(rte->eref->aliasname, NIL);
	rte->eref = makeAlias(rte->eref->aliasname, NIL);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		rte->eref->colnames = lappend(rte->eref->colnames,
									  makeString(att->attisdropped ? "" :
												 pstrdup(NameStr(att->attname))));
	}
	table_close(rel, NoLock);
}

#define FLATTEN(query, field) \
	((field) = (void *) saga_flatten_join_alias_vars((query), (Node *) (field)))

/* A table without children has one tableoid. */
static Node *
tableoid_mapper(Var *var, void *arg)
{
	RangeTblEntry *rte = rt_fetch(var->varno, ((Query *) arg)->rtable);

	if (var->varattno != TableOidAttributeNumber ||
		rte->rtekind != RTE_RELATION)
		return NULL;
	return (Node *) makeConst(OIDOID, -1, InvalidOid, sizeof(Oid),
							  ObjectIdGetDatum(rte->relid), false, true);
}

static void
flatten_joins(Query *query)
{
	ListCell   *lc;

	FLATTEN(query, query->targetList);
	FLATTEN(query, query->jointree);
	FLATTEN(query, query->havingQual);
	FLATTEN(query, query->cteList);
	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		switch (rte->rtekind)
		{
			case RTE_SUBQUERY:
				FLATTEN(query, rte->subquery);
				break;
			case RTE_FUNCTION:
				FLATTEN(query, rte->functions);
				break;
			case RTE_VALUES:
				FLATTEN(query, rte->values_lists);
				break;
			case RTE_TABLEFUNC:
				FLATTEN(query, rte->tablefunc);
				break;
			case RTE_RELATION:
				plain_columns(rte);
				break;
			default:
				break;
		}
	}
	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		if (rte->rtekind == RTE_JOIN)
		{
			rte->alias = NULL;
			rte->eref = makeAlias("unnamed_join", NIL);
			rte->joinmergedcols = 0;
			rte->joinaliasvars = NIL;
			rte->joinleftcols = NIL;
			rte->joinrightcols = NIL;
			rte->join_using_alias = NULL;
		}
	}
	plain_joins(query, (Node *) query->jointree);
	*query = *(Query *) saga_map_vars((Node *) query, tableoid_mapper, query);
	query_tree_walker(query, flatten_joins_walker, NULL,
					  QTW_IGNORE_JOINALIASES);
}

static bool
flatten_joins_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
	{
		flatten_joins((Query *) node);
		return false;
	}
	return expression_tree_walker(node, flatten_joins_walker, context);
}

/* ---- the whole ---- */

/* With the rights and the search_path in force. */
Query *
saga_query_read(const char *text, List **views)
{
	Query	   *query = analyze_text(text);

	views_read = NIL;
	expand_views(query, 0);
	*views = views_read;
	views_read = NIL;
	saga_query_check(query);
	inline_ctes(query);
	flatten_joins(query);
	return query;
}

/* ---- pulling up ---- */

/* Only selects, projects and joins?  Sorting does not count, if so told. */
bool
saga_query_simple(const Query *query, bool with_order)
{
	return query->commandType == CMD_SELECT &&
		query->setOperations == NULL &&
		!query->hasAggs &&
		query->groupClause == NIL &&
		query->groupingSets == NIL &&
		query->havingQual == NULL &&
		!query->hasWindowFuncs &&
		query->distinctClause == NIL &&
		query->limitOffset == NULL &&
		query->limitCount == NULL &&
		!query->hasTargetSRFs &&
		query->cteList == NIL &&
		(with_order || query->sortClause == NIL);
}

typedef struct CorrelatedContext
{
	int			depth;
} CorrelatedContext;

static bool
correlated_walker(Node *node, CorrelatedContext *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
		return (int) ((Var *) node)->varlevelsup > context->depth;
	if (IsA(node, Aggref))
	{
		if ((int) ((Aggref *) node)->agglevelsup > context->depth)
			return true;
	}
	else if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;

		return rte->rtekind == RTE_CTE &&
			(int) rte->ctelevelsup > context->depth;
	}
	else if (IsA(node, Query))
	{
		bool		result;

		context->depth++;
		result = query_tree_walker((Query *) node, correlated_walker,
								   (void *) context,
								   QTW_EXAMINE_RTES_BEFORE |
								   QTW_IGNORE_JOINALIASES);
		context->depth--;
		return result;
	}
	return expression_tree_walker(node, correlated_walker, (void *) context);
}

/* Does it refer to anything outside itself? */
bool
saga_query_correlated(const Query *query)
{
	CorrelatedContext context = {-1};

	return correlated_walker((Node *) query, &context);
}

typedef struct PullUpContext
{
	int			varno;
	List	   *targets;
} PullUpContext;

static Node *
pull_up_var(Var *var, void *arg)
{
	PullUpContext *context = arg;

	if (var->varno != context->varno)
		return NULL;
	if (var->varattno == 0)
	{
		RowExpr    *row = makeNode(RowExpr);
		ListCell   *lc;

		foreach(lc, context->targets)
		{
			TargetEntry *tle = lfirst_node(TargetEntry, lc);

			if (tle->resjunk)
				continue;
			row->args = lappend(row->args, copyObject(tle->expr));
			row->colnames = lappend(row->colnames,
									makeString(pstrdup(tle->resname)));
		}
		row->row_typeid = var->vartype;
		row->row_format = COERCE_EXPLICIT_CALL;
		row->location = -1;
		return (Node *) row;
	}
	return (Node *) get_tle_by_resno(context->targets, var->varattno)->expr;
}

/* An entry that is no longer in FROM. */
void
saga_blank_rte(Query *query, int rtindex)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);

	rte->rtekind = RTE_RESULT;
	rte->eref = makeAlias("unused", NIL);
	lfirst(list_nth_cell(query->rtable, rtindex - 1)) = rte;
}

/* Put subquery 'rtindex' in the place of its reference; returns its FROM. */
static Node *
pull_up_one(Query *query, int rtindex)
{
	RangeTblEntry *rte = rt_fetch(rtindex, query->rtable);
	Query	   *sub = copyObject(rte->subquery);
	PullUpContext context;
	Query	   *mapped;

	OffsetVarNodes((Node *) sub, list_length(query->rtable), 0);
	IncrementVarSublevelsUp((Node *) sub, -1, 1);
	context.varno = rtindex;
	context.targets = sub->targetList;

	saga_blank_rte(query, rtindex);

	mapped = (Query *) saga_map_vars((Node *) query, pull_up_var, &context);
	*query = *mapped;
	query->rtable = list_concat(query->rtable, sub->rtable);
	query->hasSubLinks |= sub->hasSubLinks;
	return (Node *) sub->jointree;
}

/* Item by item, joined without a condition; NULL if there is none. */
static Node *
cross_chain(Query *query, List *items)
{
	Node	   *result = NULL;
	ListCell   *lc;

	foreach(lc, items)
	{
		JoinExpr   *join;
		RangeTblEntry *rte;

		if (result == NULL)
		{
			result = lfirst(lc);
			continue;
		}
		rte = makeNode(RangeTblEntry);
		rte->rtekind = RTE_JOIN;
		rte->jointype = JOIN_INNER;
		rte->eref = makeAlias("unnamed_join", NIL);
		rte->inFromCl = true;
		query->rtable = lappend(query->rtable, rte);
		join = makeNode(JoinExpr);
		join->jointype = JOIN_INNER;
		join->larg = result;
		join->rarg = lfirst(lc);
		join->rtindex = list_length(query->rtable);
		result = (Node *) join;
	}
	return result;
}

/*
 * Dissolve the inner joins of a list of FROM into items and conditions, so
 * that only RangeTblRefs and outer joins are left in it.
 */
static List *
dissolve(Query *query, List *fromlist, List **quals)
{
	List	   *items = NIL;
	ListCell   *lc;

	foreach(lc, fromlist)
	{
		Node	   *node = lfirst(lc);

		if (IsA(node, FromExpr))
		{
			FromExpr   *from = (FromExpr *) node;

			items = list_concat(items, dissolve(query, from->fromlist, quals));
			*quals = list_concat(*quals,
								 make_ands_implicit((Expr *) from->quals));
		}
		else if (IsA(node, JoinExpr) &&
				 ((JoinExpr *) node)->jointype == JOIN_INNER)
		{
			JoinExpr   *join = (JoinExpr *) node;

			items = list_concat(items, dissolve(query, list_make1(join->larg),
												quals));
			items = list_concat(items, dissolve(query, list_make1(join->rarg),
												quals));
			*quals = list_concat(*quals,
								 make_ands_implicit((Expr *) join->quals));
		}
		else if (IsA(node, JoinExpr))
		{
			JoinExpr   *join = (JoinExpr *) node;

			if (join->jointype == JOIN_LEFT)
			{
				/* conditions on the preserved side may wait for WHERE */
				List	   *left = dissolve(query, list_make1(join->larg),
											quals);

				join->larg = cross_chain(query, left);
			}
			items = lappend(items, node);
		}
		else
			items = lappend(items, node);
	}
	return items;
}

static int	find_simple(Query *query, Node *node, bool top, bool keep_order);

/* A subquery that may be pulled up to where it stands, or 0. */
static int
find_simple_list(Query *query, List *fromlist, bool keep_order)
{
	ListCell   *lc;

	foreach(lc, fromlist)
	{
		int			found = find_simple(query, lfirst(lc), true, keep_order);

		if (found != 0)
			return found;
	}
	return 0;
}

static int
find_simple(Query *query, Node *node, bool top, bool keep_order)
{
	if (IsA(node, RangeTblRef))
	{
		int			rtindex = ((RangeTblRef *) node)->rtindex;
		RangeTblEntry *rte = rt_fetch(rtindex, query->rtable);

		if (rte->rtekind == RTE_SUBQUERY &&
			saga_query_simple(rte->subquery, !keep_order) &&
			(top || rte->subquery->jointree->fromlist != NIL))
			return rtindex;
	}
	else if (IsA(node, JoinExpr))
	{
		JoinExpr   *join = (JoinExpr *) node;
		int			found = 0;

		if (join->jointype == JOIN_INNER || join->jointype == JOIN_LEFT)
			found = find_simple(query, join->larg, false, keep_order);
		if (found == 0 && join->jointype == JOIN_INNER)
			found = find_simple(query, join->rarg, false, keep_order);
		return found;
	}
	return 0;
}

static Node *
put_in_place(Node *node, int rtindex, Node *from)
{
	if (IsA(node, RangeTblRef))
		return ((RangeTblRef *) node)->rtindex == rtindex ? from : node;
	if (IsA(node, FromExpr))
	{
		ListCell   *lc;

		foreach(lc, ((FromExpr *) node)->fromlist)
			lfirst(lc) = put_in_place(lfirst(lc), rtindex, from);
	}
	else
	{
		JoinExpr   *join = castNode(JoinExpr, node);

		join->larg = put_in_place(join->larg, rtindex, from);
		join->rarg = put_in_place(join->rarg, rtindex, from);
	}
	return node;
}

static bool
pull_up_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
	{
		saga_query_pull_up((Query *) node);
		return false;
	}
	return expression_tree_walker(node, pull_up_walker, context);
}

static bool
order_walker(Node *node, void *context)
{
	if (node == NULL || IsA(node, Query))
		return false;
	if (IsA(node, Aggref) && ((Aggref *) node)->aggorder == NIL &&
		((Aggref *) node)->aggkind == AGGKIND_NORMAL)
	{
		const char *name = get_func_name(((Aggref *) node)->aggfnoid);
		size_t		length = strlen(name);

		if (length > 4 && strcmp(name + length - 4, "_agg") == 0)
			return true;
	}
	return expression_tree_walker(node, order_walker, context);
}

/* Has it aggregates that show the order in which rows came to them? */
bool
saga_order_sensitive(Query *query)
{
	return order_walker((Node *) query->targetList, NULL) ||
		order_walker(query->havingQual, NULL);
}

/*
 * Simple subqueries where rows are neither nulled nor counted become part of
 * the query that reads them, at all levels.
 */
void
saga_query_pull_up(Query *query)
{
	bool		keep_order = saga_order_sensitive(query);
	List	   *quals = NIL;
	int			rtindex;

	query_tree_walker(query, pull_up_walker, NULL, QTW_IGNORE_JOINALIASES);
	if (query->setOperations != NULL)
		return;
	for (;;)
	{
		List	   *items;

		quals = NIL;
		items = dissolve(query, query->jointree->fromlist, &quals);
		quals = list_concat(quals,
							make_ands_implicit((Expr *) query->jointree->quals));
		query->jointree = makeFromExpr(items,
									   quals == NIL ? NULL :
									   (Node *) make_ands_explicit(quals));
		rtindex = find_simple_list(query, items, keep_order);
		if (rtindex == 0)
			break;
		put_in_place((Node *) query->jointree, rtindex,
					 pull_up_one(query, rtindex));
	}
}
