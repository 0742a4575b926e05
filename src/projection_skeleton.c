/*
 * projection_skeleton.c
 *		Which keys of a block a change may affect.
 *
 * Called by projection_keys.c.  For one changed occurrence T of an input,
 * wherever it is in the block, the *skeleton* is a join of everything between
 * T and the top: T is its delta, other changed inputs are their new rows and
 * those that left, joins that null-extend T's side are inner, subqueries on
 * the way are pulled in with their conditions.  Grouping, HAVING, DISTINCT,
 * LIMIT and every condition that cannot be said at the top are left out: more
 * keys than needed are right, fewer are wrong.
 *
 * Optional sides of other outer joins that the key or a condition on the way
 * needs are there in one variant and nulls in another; when the key has
 * columns of a side that T is on, that side is also nulled after it joined.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteManip.h"

#include "projection_plan.h"

/* Optional sides that may be varied; more are left out. */
#define MAX_OPTIONAL 4

typedef enum EntryState
{
	ENTRY_ABSENT,				/* not (yet) in the skeleton: unknown */
	ENTRY_MAPPED,				/* entry 'varno' of the skeleton */
	ENTRY_EXPRS,				/* the select list of 'level' */
	ENTRY_NULL,					/* null-extended */
} EntryState;

typedef struct Level
{
	Query	   *query;
	struct Level *outer;
	EntryState *states;
	int		   *varnos;
	struct Level **levels;
} Level;

typedef struct Skeleton
{
	SagaProgram *program;
	SagaChanges *changes;
	RangeTblEntry *target;
	Query	   *result;
	List	   *quals;
	Bitmapset  *needed;			/* entries of the top level that matter */
	List	   *optional;		/* JoinExprs whose sides are varied (of Node *:
								 * the side) */
	int			present;		/* which of them are there (bits) */
	List	   *nullable;		/* sides that T is on (of Node *) */
	int			nulled;			/* which is nulled after joining, or -1 */
	bool		any_null;		/* IN, NOT IN: the variant for nulls */
	bool		has_any_null;
	bool		unknown;		/* the expression just mapped has no value */
	bool		found;			/* T is in */
} Skeleton;

/* ---- where T is ---- */

static bool
contains_walker(Node *node, RangeTblEntry *target)
{
	if (node == NULL)
		return false;
	if (node == (Node *) target)
		return true;
	if (IsA(node, RangeTblEntry))
		return false;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, contains_walker,
								 (void *) target,
								 QTW_EXAMINE_RTES_BEFORE |
								 QTW_IGNORE_JOINALIASES);
	return expression_tree_walker(node, contains_walker, (void *) target);
}

/* Is T in an expression or query? */
static bool
contains(Skeleton *sk, Node *node)
{
	return contains_walker(node, sk->target);
}

/* Is T at, or in a subquery of, an entry below a node of the jointree? */
static bool
from_contains(Skeleton *sk, Query *query, Node *node)
{
	if (IsA(node, RangeTblRef))
	{
		RangeTblEntry *rte = rt_fetch(((RangeTblRef *) node)->rtindex,
									  query->rtable);

		return rte == sk->target ||
			(rte->rtekind == RTE_SUBQUERY && contains(sk, (Node *) rte->subquery)) ||
			(rte->rtekind == RTE_FUNCTION && contains(sk, (Node *) rte->functions));
	}
	else
	{
		JoinExpr   *join = castNode(JoinExpr, node);

		return from_contains(sk, query, join->larg) ||
			from_contains(sk, query, join->rarg) ||
			contains(sk, join->quals);
	}
}

static Bitmapset *
entries_below(Node *node, Bitmapset *set)
{
	if (IsA(node, RangeTblRef))
		return bms_add_member(set, ((RangeTblRef *) node)->rtindex);
	set = entries_below(castNode(JoinExpr, node)->larg, set);
	return entries_below(((JoinExpr *) node)->rarg, set);
}

typedef struct FindContext
{
	RangeTblEntry *target;
	SubLink    *found;
} FindContext;

static bool
find_sublink_walker(Node *node, FindContext *context)
{
	if (node == NULL || IsA(node, Query))
		return false;
	if (IsA(node, SubLink))
	{
		SubLink    *link = (SubLink *) node;

		if (contains_walker(link->subselect, context->target))
		{
			context->found = link;
			return true;
		}
		return find_sublink_walker(link->testexpr, context);
	}
	return expression_tree_walker(node, find_sublink_walker, (void *) context);
}

/* ---- expressions, said at the level of the skeleton ---- */

typedef struct MapContext
{
	Skeleton   *sk;
	Level	   *level;
} MapContext;

static Node *
map_mutator(Node *node, MapContext *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;
		Level	   *level = context->level;

		for (Index i = 0; i < var->varlevelsup && level != NULL; i++)
			level = level->outer;
		if (level == NULL)
			elog(ERROR, "variable beyond the block");
		switch (level->states[var->varno])
		{
			case ENTRY_MAPPED:
				{
					Var		   *result = copyObject(var);

					result->varno = level->varnos[var->varno];
					result->varlevelsup = 0;
					return (Node *) saga_whole_row(context->sk->result, result);
				}
			case ENTRY_NULL:
				return (Node *) makeNullConst(var->vartype, var->vartypmod,
											  var->varcollid);
			case ENTRY_EXPRS:
				{
					Level	   *below = level->levels[var->varno];
					MapContext	inner = {context->sk, below};

					if (var->varattno <= 0)
						break;
					return map_mutator((Node *) get_tle_by_resno(below->query->targetList,
																 var->varattno)->expr,
									   &inner);
				}
			case ENTRY_ABSENT:
				break;
		}
		context->sk->unknown = true;
		return node;
	}
	if (IsA(node, SubLink) || IsA(node, Aggref) || IsA(node, WindowFunc) ||
		IsA(node, GroupingFunc))
	{
		context->sk->unknown = true;
		return node;
	}
	return expression_tree_mutator(node, map_mutator, (void *) context);
}

/* NULL if it has no value in the skeleton. */
static Node *
map_expr(Skeleton *sk, Level *level, Node *expr)
{
	MapContext	context = {sk, level};
	Node	   *result;

	sk->unknown = false;
	result = map_mutator(expr, &context);
	return sk->unknown ? NULL : result;
}

static void
add_quals(Skeleton *sk, Level *level, Node *quals)
{
	ListCell   *lc;

	foreach(lc, make_ands_implicit((Expr *) quals))
	{
		Node	   *qual;

		if (saga_has_sublink(lfirst(lc)))
			continue;
		qual = map_expr(sk, level, lfirst(lc));
		if (qual != NULL)
			sk->quals = lappend(sk->quals, qual);
	}
}

/* ---- FROM ---- */

static Level *add_query(Skeleton *sk, Query *query, Level *outer);
static void add_sublink_of(Skeleton *sk, Level *level, Node *expr,
						   bool condition);

static Level *
new_level(Query *query, Level *outer)
{
	Level	   *level = palloc0(sizeof(Level));
	int			n = list_length(query->rtable) + 1;

	level->query = query;
	level->outer = outer;
	level->states = palloc0(n * sizeof(EntryState));
	level->varnos = palloc0(n * sizeof(int));
	level->levels = palloc0(n * sizeof(Level *));
	return level;
}

static void
add_rte(Skeleton *sk, Level *level, int rtindex, RangeTblEntry *rte)
{
	RangeTblRef *ref = makeNode(RangeTblRef);

	sk->result->rtable = lappend(sk->result->rtable, rte);
	ref->rtindex = list_length(sk->result->rtable);
	sk->result->jointree->fromlist = lappend(sk->result->jointree->fromlist, ref);
	if (level != NULL)
	{
		level->states[rtindex] = ENTRY_MAPPED;
		level->varnos[rtindex] = ref->rtindex;
	}
}

/* A changed input reads its delta if it is T, all it held otherwise. */
static RangeTblEntry *
input_copy(Skeleton *sk, RangeTblEntry *rte)
{
	RangeTblEntry *copy = copyObject(rte);

	if (sk->changes == NULL)
		return copy;			/* only a look whether it works */
	if (rte == sk->target)
		saga_rte_to_delta(sk->program, copy);
	else if (saga_rte_changed(sk->changes, rte))
		saga_rte_to_both(sk->program, copy);
	return copy;
}

static bool
both_walker(Node *node, Skeleton *sk)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;

		if (sk->changes != NULL && saga_rte_changed(sk->changes, rte))
			saga_rte_to_both(sk->program, rte);
		return false;
	}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, both_walker, (void *) sk,
								 QTW_EXAMINE_RTES_AFTER |
								 QTW_IGNORE_JOINALIASES);
	return expression_tree_walker(node, both_walker, (void *) sk);
}

static void
add_entry(Skeleton *sk, Level *level, int rtindex)
{
	RangeTblEntry *rte = rt_fetch(rtindex, level->query->rtable);

	if (saga_rte_input(rte))
	{
		if (rte == sk->target)
			sk->found = true;
		add_rte(sk, level, rtindex, input_copy(sk, rte));
		return;
	}
	switch (rte->rtekind)
	{
		case RTE_SUBQUERY:
			{
				bool		on_path = contains(sk, (Node *) rte->subquery);

				if (on_path || saga_query_simple(rte->subquery, true))
				{
					level->levels[rtindex] = add_query(sk, rte->subquery, level);
					level->states[rtindex] = ENTRY_EXPRS;
				}
				else if (saga_union_all_linear(rte->subquery))
				{
					RangeTblEntry *copy = copyObject(rte);

					both_walker((Node *) copy->subquery, sk);
					add_rte(sk, level, rtindex, copy);
				}
				break;
			}
		case RTE_VALUES:
		case RTE_FUNCTION:
			{
				RangeTblEntry *copy = copyObject(rte);
				Node	   *mapped;

				if (rte->rtekind == RTE_VALUES)
					mapped = map_expr(sk, level, (Node *) rte->values_lists);
				else
					mapped = map_expr(sk, level, (Node *) rte->functions);
				if (mapped != NULL)
				{
					if (rte->rtekind == RTE_VALUES)
						copy->values_lists = (List *) mapped;
					else
						copy->functions = (List *) mapped;
					copy->lateral = true;
					add_rte(sk, level, rtindex, copy);
				}
				else
					add_sublink_of(sk, level, (Node *) rte->functions,
								   false);
				break;
			}
		default:
			break;
	}
}

static void
set_null(Level *level, Node *side)
{
	Bitmapset  *entries = entries_below(side, NULL);
	int			rtindex = -1;

	while ((rtindex = bms_next_member(entries, rtindex)) >= 0)
		level->states[rtindex] = ENTRY_NULL;
}

/* Position in a list of nodes, appended if it is new and there is room. */
static int
note_side(List **list, Node *side, int max)
{
	int			i = 0;
	ListCell   *lc;

	foreach(lc, *list)
	{
		if (lfirst(lc) == side)
			return i;
		i++;
	}
	if (i >= max)
		return -1;
	*list = lappend(*list, side);
	return i;
}

static void add_from(Skeleton *sk, Level *level, Node *node);

/* A side that may be missing, without T.  Returns whether it is there. */
static bool
add_optional(Skeleton *sk, Level *level, Node *side)
{
	int			i;

	if (level->outer != NULL ||
		!bms_overlap(entries_below(side, NULL), sk->needed))
		return false;
	i = note_side(&sk->optional, side, MAX_OPTIONAL);
	if (i < 0)
		return false;
	if (sk->present & (1 << i))
	{
		add_from(sk, level, side);
		return true;
	}
	set_null(level, side);
	return false;
}

/* A side with T that outer rows may do without: after it joined, nulls. */
static void
nulled_side(Skeleton *sk, Level *level, Node *side)
{
	int			i;

	if (level->outer != NULL ||
		!bms_overlap(entries_below(side, NULL), sk->needed))
		return;
	i = note_side(&sk->nullable, side, 16);
	if (i >= 0 && i == sk->nulled)
		set_null(level, side);
}

static void
add_from(Skeleton *sk, Level *level, Node *node)
{
	JoinExpr   *join;
	bool		left;
	bool		right;
	bool		on;

	if (IsA(node, RangeTblRef))
	{
		add_entry(sk, level, ((RangeTblRef *) node)->rtindex);
		return;
	}
	join = castNode(JoinExpr, node);
	left = from_contains(sk, level->query, join->larg);
	right = from_contains(sk, level->query, join->rarg);
	on = contains(sk, join->quals);

	if (join->jointype == JOIN_INNER || right || on)
	{
		/* T decides about matches: whatever may match */
		if (join->jointype == JOIN_FULL && right && !on)
		{
			bool		there;

			add_from(sk, level, join->rarg);
			there = add_optional(sk, level, join->larg);
			if (there)
				add_quals(sk, level, join->quals);
			nulled_side(sk, level, join->rarg);
			return;
		}
		add_from(sk, level, join->larg);
		add_from(sk, level, join->rarg);
		add_quals(sk, level, join->quals);
		if (on)
			add_sublink_of(sk, level, join->quals, false);
		if (join->jointype != JOIN_INNER)
			nulled_side(sk, level, join->rarg);
		if (join->jointype == JOIN_FULL)
			nulled_side(sk, level, join->larg);
		return;
	}
	if (join->jointype == JOIN_FULL && !left)
	{
		/* T is elsewhere: both sides, or either of them */
		bool		l = add_optional(sk, level, join->larg);
		bool		r = add_optional(sk, level, join->rarg);

		if (l && r)
			add_quals(sk, level, join->quals);
		return;
	}
	add_from(sk, level, join->larg);
	if (add_optional(sk, level, join->rarg))
		add_quals(sk, level, join->quals);
	if (join->jointype == JOIN_FULL)
		nulled_side(sk, level, join->larg);
}

/* ---- subqueries on the way ---- */

typedef struct ParamContext
{
	Skeleton   *sk;
	Level	   *below;
	bool		unknown;
} ParamContext;

/* The columns of the subquery that a test compares with. */
static Node *
test_params_mutator(Node *node, ParamContext *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Param) && ((Param *) node)->paramkind == PARAM_SUBLINK)
	{
		TargetEntry *tle = get_tle_by_resno(context->below->query->targetList,
											((Param *) node)->paramid);
		Node	   *result = tle == NULL ? NULL :
			map_expr(context->sk, context->below, (Node *) tle->expr);

		if (result == NULL)
		{
			context->unknown = true;
			return node;
		}
		return result;
	}
	return expression_tree_mutator(node, test_params_mutator, (void *) context);
}

/* Is a test true or false, never null? */
static bool
test_notnull(Level *level, Level *below, Node *test)
{
	List	   *list = is_andclause(test) ? ((BoolExpr *) test)->args :
		list_make1(test);
	ListCell   *lc;

	if (saga_has_outer_join((Node *) level->query->jointree) ||
		saga_has_outer_join((Node *) below->query->jointree))
		return false;
	foreach(lc, list)
	{
		OpExpr	   *op = lfirst(lc);
		Param	   *param;
		TargetEntry *tle;

		if (!IsA(op, OpExpr) || list_length(op->args) != 2 ||
			op->opno >= FirstGenbkiObjectId)
			return false;
		param = lsecond(op->args);
		if (!IsA(param, Param))
			return false;
		tle = get_tle_by_resno(below->query->targetList, param->paramid);
		if (tle == NULL ||
			!saga_expr_notnull(level->query, linitial(op->args)) ||
			!saga_expr_notnull(below->query, (Node *) tle->expr))
			return false;
	}
	return true;
}

/*
 * "x op ANY (SELECT s ...)": a row s matters where the test is true, and,
 * unless only true counts, where it is null.
 */
static void
add_test(Skeleton *sk, Level *level, SubLink *link, Level *below, bool positive)
{
	ParamContext context = {sk, below, false};
	Node	   *test;

	if (link->testexpr == NULL ||
		(link->subLinkType != ANY_SUBLINK && link->subLinkType != ALL_SUBLINK) ||
		saga_has_sublink(link->testexpr))
		return;
	test = map_expr(sk, level, link->testexpr);
	if (test == NULL)
		return;
	test = test_params_mutator(test, &context);
	if (context.unknown)
		return;
	if (!(positive && link->subLinkType == ANY_SUBLINK) &&
		!test_notnull(level, below, link->testexpr))
	{
		sk->has_any_null = true;
		if (sk->any_null)
		{
			NullTest   *isnull = makeNode(NullTest);

			isnull->arg = (Expr *) test;
			isnull->nulltesttype = IS_NULL;
			isnull->location = -1;
			sk->quals = lappend(sk->quals, isnull);
			return;
		}
	}
	if (link->subLinkType == ALL_SUBLINK)
		test = (Node *) make_notclause((Expr *) test);
	sk->quals = lappend(sk->quals, test);
}

/* T is in a sublink of the expression: bring its subquery in. */
static void
add_sublink_of(Skeleton *sk, Level *level, Node *expr, bool condition)
{
	FindContext context = {sk->target, NULL};
	Level	   *below;

	find_sublink_walker(expr, &context);
	if (context.found == NULL)
		return;
	below = add_query(sk, castNode(Query, context.found->subselect), level);
	add_test(sk, level, context.found, below,
			 condition &&
			 list_member_ptr(make_ands_implicit((Expr *) expr), context.found));
}

/* All that is between a query and T, or just the query if T is not in it. */
static Level *
add_query(Skeleton *sk, Query *query, Level *outer)
{
	Level	   *level = new_level(query, outer);
	ListCell   *lc;

	check_stack_depth();
	if (query->cteList != NIL)
		return level;			/* nothing is known of a recursion */
	if (query->setOperations != NULL)
	{
		foreach(lc, query->rtable)
		{
			RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

			if (rte->rtekind == RTE_SUBQUERY &&
				contains(sk, (Node *) rte->subquery))
				return add_query(sk, rte->subquery, level);
		}
		return level;
	}
	foreach(lc, query->jointree->fromlist)
		add_from(sk, level, lfirst(lc));
	add_quals(sk, level, query->jointree->quals);
	if (!sk->found)
	{
		add_sublink_of(sk, level, query->jointree->quals, true);
		if (!sk->found)
			add_sublink_of(sk, level, (Node *) query->targetList, false);
		if (!sk->found)
			add_sublink_of(sk, level, query->havingQual, false);
	}
	return level;
}

/* ---- the whole ---- */

static Query *
build(Skeleton *sk, SagaBlock *block)
{
	Level	   *top;
	ListCell   *k;
	ListCell   *c;

	sk->result = makeNode(Query);
	sk->result->commandType = CMD_SELECT;
	sk->result->canSetTag = true;
	sk->result->jointree = makeFromExpr(NIL, NULL);
	sk->quals = NIL;
	sk->found = false;

	top = add_query(sk, block->query, NULL);
	if (!sk->found)
	{
		/* out of reach: any change of it affects all */
		add_rte(sk, NULL, 0, input_copy(sk, sk->target));
	}
	forboth(k, block->keys, c, block->columns)
	{
		Node	   *key = map_expr(sk, top, lfirst(k));

		if (key == NULL)
			return NULL;
		saga_target(sk->result, (Expr *) key, ((SagaColumn *) lfirst(c))->name);
	}
	sk->result->jointree->quals = sk->quals == NIL ? NULL :
		(Node *) make_ands_explicit(sk->quals);
	return sk->result;
}

typedef struct SidesContext
{
	Skeleton   *sk;
	Bitmapset  *needed;
	bool		grew;
} SidesContext;

static Bitmapset *
sublink_varnos(Skeleton *sk, Node *expr)
{
	FindContext context = {sk->target, NULL};

	find_sublink_walker(expr, &context);
	return context.found == NULL ? NULL :
		pull_varnos(NULL, (Node *) context.found);
}

/* What conditions on the way to T look at, and what those need in turn. */
static void
needed_by_joins(SidesContext *context, Query *query, Node *node)
{
	JoinExpr   *join;
	Bitmapset  *before = bms_copy(context->needed);
	bool		wanted;

	if (IsA(node, RangeTblRef))
	{
		RangeTblEntry *rte = rt_fetch(((RangeTblRef *) node)->rtindex,
									  query->rtable);

		if (rte->lateral && from_contains(context->sk, query, node))
			context->needed = bms_add_members(context->needed,
											  rte->rtekind == RTE_SUBQUERY ?
											  pull_varnos_of_level(NULL, (Node *) rte->subquery, 1) :
											  pull_varnos(NULL, (Node *) rte->functions));
	}
	else
	{
		join = castNode(JoinExpr, node);
		wanted = from_contains(context->sk, query, node) ||
			bms_overlap(entries_below(join->rarg, NULL), context->needed) ||
			(join->jointype != JOIN_LEFT &&
			 bms_overlap(entries_below(join->larg, NULL), context->needed));
		if (wanted)
			context->needed = bms_add_members(context->needed,
											  pull_varnos(NULL, join->quals));
		needed_by_joins(context, query, join->larg);
		needed_by_joins(context, query, join->rarg);
	}
	if (!bms_equal(before, context->needed))
		context->grew = true;
}

/*
 * Queries whose union gives every key that a change of 'target' may affect;
 * NIL if that cannot be said.  changes is NULL for a trial.
 */
List *
saga_skeletons(SagaProgram *program, SagaBlock *block, RangeTblEntry *target,
			   SagaChanges *changes)
{
	Skeleton	sk;
	SidesContext sides;
	Query	   *query = block->query;
	List	   *result = NIL;
	ListCell   *lc;
	int			noptional;
	int			nnullable;
	bool		has_any_null;

	memset(&sk, 0, sizeof(sk));
	sk.program = program;
	sk.changes = changes;
	sk.target = target;

	sides.sk = &sk;
	sides.needed = pull_varnos(NULL, (Node *) block->keys);
	sides.needed = bms_add_members(sides.needed,
								   sublink_varnos(&sk, query->jointree->quals));
	sides.needed = bms_add_members(sides.needed,
								   sublink_varnos(&sk, (Node *) query->targetList));
	sides.needed = bms_add_members(sides.needed,
								   sublink_varnos(&sk, query->havingQual));
	do
	{
		sides.grew = false;
		foreach(lc, query->jointree->fromlist)
			needed_by_joins(&sides, query, lfirst(lc));
	} while (sides.grew);
	sk.needed = sides.needed;

	/* the first one, with everything there, finds what varies */
	sk.present = ~0;
	sk.nulled = -1;
	if (build(&sk, block) == NULL)
		return NIL;
	noptional = list_length(sk.optional);
	nnullable = list_length(sk.nullable);
	has_any_null = sk.has_any_null;

	for (int null = 0; null <= (has_any_null ? 1 : 0); null++)
		for (int nulled = -1; nulled < nnullable; nulled++)
			for (int present = 0; present < (1 << noptional); present++)
			{
				Query	   *one;

				sk.present = present;
				sk.nulled = nulled;
				sk.any_null = null == 1;
				one = build(&sk, block);
				if (one == NULL)
					return NIL;
				if (!list_member(result, one))
					result = lappend(result, one);
			}
	return result;
}
