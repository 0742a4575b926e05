/*
 * projection_keys.c
 *		Stages that are recomputed: for the keys that a change may affect, or
 *		in full; and bringing any stage to its query by difference.
 *
 * Called by projection_class.c (to make the block) and projection_program.c.
 * Only rows that differ are written.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "projection_plan.h"

/* ---- choosing a key ---- */

static Bitmapset *
all_entries(Node *node, Bitmapset *set)
{
	if (IsA(node, RangeTblRef))
		return bms_add_member(set, ((RangeTblRef *) node)->rtindex);
	set = all_entries(castNode(JoinExpr, node)->larg, set);
	return all_entries(((JoinExpr *) node)->rarg, set);
}

static Bitmapset *
nullable_below(Node *node, Bitmapset *set)
{
	JoinExpr   *join;

	if (IsA(node, RangeTblRef))
		return set;
	join = castNode(JoinExpr, node);
	set = nullable_below(join->larg, set);
	set = nullable_below(join->rarg, set);
	if (join->jointype != JOIN_INNER)
		set = all_entries(join->rarg, set);
	if (join->jointype == JOIN_FULL)
		set = all_entries(join->larg, set);
	return set;
}

/* Entries that an outer join may extend by nulls. */
static Bitmapset *
nullable_entries(Query *query)
{
	Bitmapset  *set = NULL;
	ListCell   *lc;

	foreach(lc, query->jointree->fromlist)
		set = nullable_below(lfirst(lc), set);
	return set;
}

static List *
all_quals(Node *node, List *quals)
{
	JoinExpr   *join;

	if (IsA(node, RangeTblRef))
		return quals;
	join = castNode(JoinExpr, node);
	quals = list_concat(quals, make_ands_implicit((Expr *) join->quals));
	quals = all_quals(join->larg, quals);
	return all_quals(join->rarg, quals);
}

/*
 * How many other tables one row goes with, the more the smaller are its keys.
 * Statistics are not asked: the answer has to be the same for ever.
 */
static int
rank_of(SagaPlanner *planner, Query *query, int rtindex)
{
	List	   *quals = make_ands_implicit((Expr *) copyObject(query->jointree->quals));
	Bitmapset  *entries = NULL;
	ListCell   *lc;

	foreach(lc, query->jointree->fromlist)
	{
		quals = all_quals(lfirst(lc), quals);
		entries = all_entries(lfirst(lc), entries);
	}
	return saga_determines(planner, query, quals, rtindex, entries);
}

/* Columns by which the rows of an input can be told apart, if only roughly. */
static List *
input_key(SagaPlanner *planner, Query *query, int rtindex, bool *unique)
{
	RangeTblEntry *rte = rt_fetch(rtindex, query->rtable);
	List	   *key;
	List	   *vars;
	List	   *result = NIL;
	ListCell   *lc;

	*unique = false;
	if (!saga_rte_input(rte) &&
		!(rte->rtekind == RTE_SUBQUERY && saga_query_simple(rte->subquery, true)))
		return NIL;
	key = saga_unique_key(planner->program, rte);
	*unique = key != NIL;
	foreach(lc, key)
		result = lappend(result, saga_var_of(query, rtindex, lfirst_int(lc)));
	if (result != NIL)
		return result;

	/* without a key: the columns that the query uses */
	vars = pull_vars_of_level((Node *) list_make2(query->targetList,
												  query->jointree), 0);
	foreach(lc, query->rtable)
	{
		RangeTblEntry *other = lfirst_node(RangeTblEntry, lc);

		if (other->rtekind == RTE_SUBQUERY)
			vars = list_concat(vars,
							   pull_vars_of_level((Node *) other->subquery, 1));
	}
	foreach(lc, vars)
	{
		Var		   *var = copyObject(lfirst_node(Var, lc));

		var->varlevelsup = 0;
		if (var->varno == rtindex && var->varattno > 0 &&
			saga_type_groupable(var->vartype))
			result = list_append_unique(result, var);
	}
	return list_length(result) <= 16 ? result : list_copy_head(result, 16);
}

typedef struct Choice
{
	List	   *key;
	bool		unique;
	int			rank;
} Choice;

static Choice
better(Choice a, Choice b)
{
	if (a.key == NIL)
		return b;
	if (b.key == NIL)
		return a;
	if (a.unique != b.unique)
		return a.unique ? a : b;
	return b.rank > a.rank ? b : a;
}

/* The key of one table that every row of a node has, both of FULL JOIN. */
static Choice
node_key(SagaPlanner *planner, Query *query, Node *node)
{
	Choice		none = {NIL, false, 0};
	JoinExpr   *join;

	if (IsA(node, RangeTblRef))
	{
		int			rtindex = ((RangeTblRef *) node)->rtindex;
		Choice		choice;

		choice.key = input_key(planner, query, rtindex, &choice.unique);
		choice.rank = rank_of(planner, query, rtindex);
		return choice;
	}
	join = castNode(JoinExpr, node);
	if (join->jointype == JOIN_LEFT)
		return node_key(planner, query, join->larg);
	if (join->jointype == JOIN_INNER)
		return better(node_key(planner, query, join->larg),
					  node_key(planner, query, join->rarg));
	if (join->jointype == JOIN_FULL)
	{
		Choice		left = node_key(planner, query, join->larg);
		Choice		right = node_key(planner, query, join->rarg);

		if (left.key == NIL || right.key == NIL)
			return none;
		left.key = list_concat(list_copy(left.key), right.key);
		left.unique = false;	/* only if there is nothing simpler */
		left.rank = -1;
		return left;
	}
	return none;
}

/* Columns by which a plain block is recomputed, or NIL. */
List *
saga_core_key(SagaPlanner *planner, Query *query)
{
	Choice		best = {NIL, false, 0};
	ListCell   *lc;

	foreach(lc, query->jointree->fromlist)
		best = better(best, node_key(planner, query, lfirst(lc)));
	return best.key;
}

/* Grouping columns that are the key of a table, so that groups are small. */
List *
saga_grouping_key(SagaPlanner *planner, Query *query)
{
	List	   *exprs = get_sortgrouplist_exprs(query->groupClause,
												query->targetList);
	Bitmapset  *nullable = nullable_entries(query);
	Bitmapset  *entries = NULL;
	int			rtindex = -1;
	ListCell   *lc;

	foreach(lc, query->jointree->fromlist)
		entries = all_entries(lfirst(lc), entries);
	while ((rtindex = bms_next_member(entries, rtindex)) >= 0)
	{
		bool		unique;
		List	   *key = input_key(planner, query, rtindex, &unique);

		if (unique && !bms_is_member(rtindex, nullable) &&
			list_difference(key, exprs) == NIL)
			return key;
	}
	return NIL;
}

/* The columns that the user chose; allowed: NIL for any. */
List *
saga_user_keys(SagaPlanner *planner, Query *query, List *allowed)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, planner->key)
	{
		char	   *name = lfirst(lc);
		Node	   *expr = NULL;
		ListCell   *t;

		foreach(t, query->targetList)
		{
			TargetEntry *tle = lfirst_node(TargetEntry, t);

			if (!tle->resjunk && strcmp(tle->resname, name) == 0)
				expr = (Node *) tle->expr;
		}
		if (expr == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column \"%s\" is no output column", name)));
		if ((allowed != NIL && !list_member(allowed, expr)) ||
			contain_agg_clause(expr) || contain_window_function(expr) ||
			saga_has_sublink(expr) || expression_returns_set(expr) ||
			!contain_var_clause(expr) ||
			!saga_type_groupable(exprType(expr)))
			SAGA_REFUSE(errmsg("the query cannot be recomputed by column \"%s\"",
							   name),
						errdetail("The rows of one value are not computed independently of those of others."),
						errhint("Use columns of GROUP BY, PARTITION BY or DISTINCT ON, or of a table."));
		result = lappend(result, copyObject(expr));
	}
	return result;
}

/* ---- occurrences ---- */

typedef struct OccurrenceContext
{
	SagaChanges *changes;		/* NULL: all */
	List	   *list;
} OccurrenceContext;

static bool
occurrence_walker(Node *node, OccurrenceContext *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;

		if (saga_rte_input(rte) &&
			(context->changes == NULL || saga_rte_changed(context->changes, rte)))
			context->list = lappend(context->list, rte);
		return false;
	}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, occurrence_walker,
								 (void *) context,
								 QTW_EXAMINE_RTES_BEFORE |
								 QTW_IGNORE_JOINALIASES);
	return expression_tree_walker(node, occurrence_walker, (void *) context);
}

static List *
occurrences(Query *query, SagaChanges *changes)
{
	OccurrenceContext context = {changes, NIL};

	occurrence_walker((Node *) query, &context);
	return context.list;
}

/* Can the block be recomputed by these keys?  If not, why. */
bool
saga_keys_work(SagaPlanner *planner, Query *query, List *keys,
			   const char **reason)
{
	SagaBlock	block = {0};
	ListCell   *lc;
	int			i = 0;

	foreach(lc, keys)
	{
		Node	   *key = lfirst(lc);

		if (expression_returns_set(key) || saga_has_sublink(key) ||
			contain_agg_clause(key) || contain_window_function(key) ||
			!saga_type_groupable(exprType(key)))
		{
			*reason = psprintf("%s; its key cannot be looked up", *reason);
			return false;
		}
		block.columns = lappend(block.columns,
								saga_column_of_expr(psprintf("saga_k%d", ++i), key));
	}
	block.keys = keys;
	block.query = query;
	foreach(lc, occurrences(query, NULL))
		if (saga_skeletons(planner->program, &block, lfirst(lc), NULL) == NIL)
		{
			*reason = psprintf("%s; which keys a change affects cannot be told",
							   *reason);
			return false;
		}
	return true;
}

/* ---- the block ---- */

/* keys: level-0 expressions of the query; NIL: recomputed in full. */
SagaBlock *
saga_keyed_block(SagaPlanner *planner, Query *query, List *keys, int number,
				 bool top)
{
	SagaBlock  *block = palloc0(sizeof(SagaBlock));
	Bitmapset  *nullable = query->setOperations == NULL ?
		nullable_entries(query) : NULL;
	List	   *old = query->targetList;
	List	   *targets = NIL;
	List	   *placed = NIL;	/* entries of old, in the order of storage */
	Query	   *view;
	ListCell   *lc;
	int			i = 0;

	block->kind = keys == NIL ? SAGA_BLOCK_FULL : SAGA_BLOCK_KEYED;
	block->query = query;
	foreach(lc, keys)
	{
		Node	   *key = lfirst(lc);
		TargetEntry *found = NULL;
		SagaColumn *column;
		ListCell   *t;

		i++;
		foreach(t, old)
		{
			TargetEntry *tle = lfirst_node(TargetEntry, t);

			if (equal(tle->expr, key) && !list_member_ptr(placed, tle))
			{
				found = tle;
				break;
			}
		}
		placed = lappend(placed, found);
		column = saga_column_of_expr(found != NULL && !found->resjunk && top ?
									 found->resname : psprintf("saga_k%d", i),
									 key);
		column->notnull = saga_expr_notnull(query, key) &&
			!bms_overlap(pull_varnos(NULL, key), nullable);
		block->columns = lappend(block->columns, column);
		targets = lappend(targets, found != NULL ? (void *) copyObject(found) :
						  (void *) makeTargetEntry(copyObject((Expr *) key), 0,
												   NULL, false));
	}
	block->nkeys = list_length(keys);
	i = 0;
	foreach(lc, old)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		i++;
		if (list_member_ptr(placed, tle))
			continue;
		placed = lappend(placed, tle);
		block->columns = lappend(block->columns,
								 saga_column_of_expr(tle->resjunk ? psprintf("saga_o%d", i) :
													 top ? tle->resname : psprintf("c%d", i),
													 (Node *) tle->expr));
		targets = lappend(targets, copyObject(tle));
	}

	view = saga_parse_over_storage(number, block->columns, "true");
	view->targetList = NIL;
	foreach(lc, old)
	{
		TargetEntry *tle = copyObject(lfirst_node(TargetEntry, lc));
		ListCell   *p;
		int			at = 0;

		foreach(p, placed)
		{
			at++;
			if (lfirst(p) == lfirst(lc))
				break;
		}
		tle->expr = (Expr *) saga_column_var(1, at,
											 list_nth(block->columns, at - 1));
		view->targetList = lappend(view->targetList, tle);
	}

	if (query->setOperations == NULL)
	{
		ListCell   *c;

		i = 0;
		forboth(lc, targets, c, block->columns)
		{
			TargetEntry *tle = lfirst_node(TargetEntry, lc);

			tle->resno = ++i;
			tle->resjunk = false;
			tle->resname = ((SagaColumn *) lfirst(c))->name;
		}
		query->targetList = targets;
	}
	block->keys = keys;
	block->one_group = query->hasAggs && query->groupClause == NIL &&
		query->groupingSets == NIL && query->havingQual == NULL;
	saga_set_view(block, view, top);
	return block;
}

/* ---- the rows it should hold ---- */

static char *
names_of(SagaBlock *block)
{
	return saga_column_list(block->columns, -1, NULL);
}

static Expr *
is_null(Expr *expr)
{
	NullTest   *test = makeNode(NullTest);

	test->arg = expr;
	test->nulltesttype = IS_NULL;
	test->location = -1;
	return (Expr *) test;
}

/* The block restricted to the keys in 'keys', with or without null ones. */
static char *
restricted(SagaProgram *program, SagaBlock *block, const char *keys, bool nulls)
{
	Query	   *query = copyObject(block->query);
	List	   *columns = list_copy_head(block->columns, block->nkeys);
	RangeTblRef *ref = makeNode(RangeTblRef);
	List	   *quals = make_ands_implicit((Expr *) query->jointree->quals);
	List	   *thisnull = NIL;
	List	   *anynull = NIL;
	ListCell   *k;
	ListCell   *c;
	int			i = 0;

	query->rtable = lappend(query->rtable,
							saga_enr_rte(keys, "saga_keys", columns));
	ref->rtindex = list_length(query->rtable);
	query->jointree->fromlist = lcons(ref, query->jointree->fromlist);
	forboth(k, block->keys, c, columns)
	{
		SagaColumn *column = lfirst(c);
		Expr	   *expr = lfirst(k);
		Var		   *var = saga_column_var(ref->rtindex, ++i, column);
		Var		   *alone = saga_column_var(1, i, column);
		Expr	   *qual = saga_equal(copyObject(expr), (Expr *) var);

		if (nulls && !column->notnull)
		{
			Expr	   *key = is_null((Expr *) copyObject(var));
			Expr	   *value = is_null(copyObject(expr));

			thisnull = lappend(thisnull, copyObject(key));
			anynull = lappend(anynull, is_null((Expr *) alone));
			qual = make_orclause(list_make2(qual,
											make_andclause(list_make2(key, value))));
		}
		quals = lappend(quals, qual);
	}
	if (nulls)
	{
		/* asked once, so that nothing is read when no key has nulls */
		Query	   *any = saga_select_from(saga_enr_rte(keys, "saga_nulls", columns));
		SubLink    *exists = makeNode(SubLink);

		saga_target(any, (Expr *) makeBoolConst(true, false), "one");
		any->jointree->quals = list_length(anynull) == 1 ?
			linitial(anynull) : (Node *) make_orclause(anynull);
		exists->subLinkType = EXISTS_SUBLINK;
		exists->subselect = (Node *) any;
		exists->location = -1;
		quals = lappend(quals, list_length(thisnull) == 1 ?
						linitial(thisnull) : (void *) make_orclause(thisnull));
		quals = lappend(quals, exists);
	}
	query->jointree->quals = (Node *) make_ands_explicit(quals);
	return saga_deparse(program, query);
}

char *
saga_keyed_fresh(SagaProgram *program, SagaStage *stage, const char *keys)
{
	SagaBlock  *block = stage->block;
	char	   *rows;
	bool		nulls = false;

	if (keys == NULL)
		rows = saga_deparse(program, block->query);
	else
	{
		for (int i = 0; i < block->nkeys; i++)
			if (!((SagaColumn *) list_nth(block->columns, i))->notnull)
				nulls = true;
		rows = restricted(program, block, keys, false);
		if (nulls)
			rows = psprintf("(%s) UNION ALL (%s)", rows,
							restricted(program, block, keys, true));
	}
	return psprintf("SELECT * FROM (%s) f(%s)", rows, names_of(block));
}

/* ---- statements ---- */

/*
 * Bring storage to 'fresh' (its columns); keys: a tuplestore, to look at rows
 * of these keys only.  Equal rows are numbered, so that each finds its like.
 * Stored rows are numbered twice, on two plans: by their place, as 1.0 and
 * 1.00 hash alike and either would do for the number of the other.
 */
List *
saga_diff_statements(SagaProgram *program, SagaStage *stage, char *fresh,
					 const char *keys)
{
	SagaBlock  *block = stage->block;
	List	   *columns = block->columns;
	char	   *f = psprintf("saga_f%d", stage->number);
	char	   *x = psprintf("saga_x%d", stage->number);
	char	   *y = psprintf("saga_y%d", stage->number);
	char	   *from = psprintf("%s s", stage->storage);
	char	   *stored;
	char	   *alike;
	List	   *result = NIL;

	if (keys != NULL)
		from = psprintf("%s s, %s k WHERE %s", stage->storage, keys,
						saga_key_join(columns, block->nkeys, "s", "k"));
	result = lappend(result,
					 saga_statement(psprintf("SELECT s.*, row_number() OVER (PARTITION BY saga_hash) AS saga_rank FROM (SELECT s.*, %s AS saga_hash FROM (%s) s) s",
											 saga_hash_sql(columns, "s"), fresh),
									f, (char *) keys));
	stored = psprintf("(SELECT o.*, row_number() OVER (PARTITION BY saga_hash ORDER BY saga_tid) AS saga_rank FROM (SELECT s.ctid AS saga_tid, %s, %s AS saga_hash FROM %s) o) o",
					  saga_column_list(columns, -1, "s"),
					  saga_hash_sql(columns, "s"), from);
	alike = psprintf("f.saga_hash = o.saga_hash AND f.saga_rank = o.saga_rank AND %s OPERATOR(pg_catalog.*=) %s",
					 saga_row_sql(columns, "f"), saga_row_sql(columns, "o"));
	result = lappend(result,
					 saga_statement(psprintf("SELECT o.* FROM %s WHERE NOT EXISTS (SELECT FROM %s f WHERE %s)",
											 stored, f, alike),
									x, (char *) keys));
	result = lappend(result,
					 saga_statement(psprintf("SELECT f.* FROM %s f WHERE NOT EXISTS (SELECT FROM %s WHERE %s)",
											 f, stored, alike),
									y, f));
	result = lappend(result,
					 saga_statement(psprintf("DELETE FROM %s s USING %s x WHERE s.ctid = x.saga_tid",
											 stage->storage, x),
									NULL, x));
	result = lappend(result,
					 saga_statement(psprintf("INSERT INTO %s (%s) SELECT %s FROM %s",
											 stage->storage, names_of(block),
											 names_of(block), y),
									NULL, y));
	if (stage->feeds)
		result = lappend(result,
						 saga_put_out(program, stage,
									  psprintf("saga:diff %d", stage->number)));
	return result;
}

List *
saga_keyed_maintain(SagaProgram *program, SagaStage *stage,
					SagaChanges *changes)
{
	SagaBlock  *block = stage->block;
	char	   *g = psprintf("saga_g%d", stage->number);
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, occurrences(block->query, changes))
	{
		ListCell   *q;

		foreach(q, saga_skeletons(program, block, lfirst(lc), changes))
			appendStringInfo(&buf, "%s(%s)", buf.len == 0 ? "" : " UNION ALL ",
							 saga_deparse(program, lfirst(q)));
	}
	return lcons(saga_statement(psprintf("SELECT DISTINCT * FROM (%s) k(%s)",
										 buf.data,
										 saga_column_list(block->columns, block->nkeys, NULL)),
								g, NULL),
				 saga_diff_statements(program, stage,
									  saga_keyed_fresh(program, stage, g), g));
}
