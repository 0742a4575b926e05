/*
 * projection_rows.c
 *		Stages that hold the rows of a linear core, and what all stages share
 *		about their output and its delta.
 *
 * Called by projection_class.c (to make the block), projection_groups.c and
 * projection_program.c.  Rows are told apart by keys of the sources where there
 * are such; otherwise equal rows are counted (saga_n), found by a hash
 * (saga_h) and compared by image, so that any type will do.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "nodes/bitmapset.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "projection_plan.h"

/* More key columns than this are not worth an index. */
#define MAX_KEY_COLUMNS 8

/* ---- output ---- */

/* Names at the top are the user's; elsewhere they only have to differ. */
void
saga_set_view(SagaBlock *block, Query *view, bool top)
{
	if (!top)
	{
		List	   *targets = NIL;
		ListCell   *lc;

		foreach(lc, view->targetList)
		{
			TargetEntry *tle = lfirst_node(TargetEntry, lc);

			if (tle->resjunk)
				continue;
			targets = lappend(targets, tle);
			tle->resno = list_length(targets);
			tle->resname = psprintf("c%d", tle->resno);
		}
		view->targetList = targets;
	}
	block->view = view;
	block->out = saga_target_columns(view->targetList);
}

/* The output of a view over rows with saga_w, which it then has too. */
static char *
weighted_output(SagaProgram *program, SagaStage *stage, const char *rows)
{
	Query	   *view = copyObject(stage->block->view);
	RangeTblEntry *rte = rt_fetch(1, view->rtable);

	rte->enrname = pstrdup(rows);
	rte->eref->colnames = lappend(rte->eref->colnames, makeString(SAGA_WEIGHT));
	rte->coltypes = lappend_oid(rte->coltypes, INT8OID);
	rte->coltypmods = lappend_int(rte->coltypmods, -1);
	rte->colcollations = lappend_oid(rte->colcollations, InvalidOid);
	saga_target(view, (Expr *) makeVar(1, list_length(rte->coltypes), INT8OID,
									   -1, InvalidOid, 0), SAGA_WEIGHT);
	return saga_deparse(program, view);
}

/* The output of what saga_gN touched, coming (1) or going (-1). */
static char *
touched(SagaProgram *program, SagaStage *stage, int sign)
{
	return psprintf("SELECT %s, %d * " SAGA_WEIGHT " AS " SAGA_WEIGHT " FROM (%s) v WHERE " SAGA_WEIGHT " > 0",
					saga_column_list(stage->block->out, -1, NULL), sign,
					weighted_output(program, stage,
									psprintf("saga:touched %d", stage->number)));
}

char *
saga_touched_sql(SagaProgram *program, SagaStage *stage)
{
	return touched(program, stage, -1);
}

/* The stage's delta: what saga_gN touched, as it was (saga_oN) and is. */
SagaStatement *
saga_output_delta(SagaProgram *program, SagaStage *stage)
{
	return saga_statement(saga_consolidate(stage->block->out,
										   psprintf("SELECT * FROM saga_o%d UNION ALL %s",
													stage->number,
													touched(program, stage, 1))),
						  stage->delta, NULL);
}

/*
 * Rows with weights, equal ones (by image) summed up.  Where equality is not
 * identity, or is not there, the text of a value stands for it.
 */
char *
saga_consolidate(List *columns, const char *terms)
{
	StringInfoData select;
	StringInfoData group;
	StringInfoData images;
	ListCell   *lc;

	initStringInfo(&select);
	initStringInfo(&group);
	initStringInfo(&images);
	foreach(lc, columns)
	{
		SagaColumn *column = lfirst(lc);
		const char *name = quote_identifier(column->name);
		const char *comma = lc == list_head(columns) ? "" : ", ";

		if (saga_type_groupable(column->type) &&
			saga_type_image_equal(column->type, column->typmod,
								  column->collation))
		{
			appendStringInfo(&select, "%s%s", comma, name);
			appendStringInfo(&group, "%s%s", comma, name);
		}
		else
		{
			/* a column: the parser takes COLLATE off below a cast */
			char	   *image = psprintf("saga_i%d", foreach_current_index(lc));

			appendStringInfo(&images, ", %s::text COLLATE \"C\" AS %s", name, image);
			appendStringInfo(&select, "%s%s::%s AS %s", comma, image,
							 saga_cast_sql(column), name);
			appendStringInfo(&group, "%s%s", comma, image);
		}
	}
	if (images.len > 0)
		terms = psprintf("SELECT t.*%s FROM (%s) t", images.data, terms);
	return psprintf("SELECT %s, sum(" SAGA_WEIGHT ")::bigint AS " SAGA_WEIGHT " FROM (%s) d GROUP BY %s HAVING sum(" SAGA_WEIGHT ") <> 0",
					select.data, terms, group.data);
}

/* ---- identity ---- */

/* var = expression of others, so that the others determine var's row. */
typedef struct Determined
{
	int			varno;
	AttrNumber	attno;
	Bitmapset  *by;
} Determined;

static void
note_equality(List **list, Node *left, Node *right)
{
	Determined *d;

	if (IsA(left, RelabelType))
		left = (Node *) ((RelabelType *) left)->arg;
	if (!IsA(left, Var) || ((Var *) left)->varlevelsup != 0)
		return;
	d = palloc0(sizeof(Determined));
	d->varno = ((Var *) left)->varno;
	d->attno = ((Var *) left)->varattno;
	d->by = pull_varnos(NULL, right);
	if (!bms_is_member(d->varno, d->by))
		*list = lappend(*list, d);
}

static bool
key_determined(List *equalities, int varno, List *key, Bitmapset *known)
{
	ListCell   *lc;

	foreach(lc, key)
	{
		bool		found = false;
		ListCell   *e;

		foreach(e, equalities)
		{
			Determined *d = lfirst(e);

			if (d->varno == varno && d->attno == lfirst_int(lc) &&
				bms_is_subset(d->by, known))
				found = true;
		}
		if (!found)
			return false;
	}
	return true;
}

static List *
find_equalities(List *quals)
{
	List	   *equalities = NIL;
	ListCell   *lc;

	foreach(lc, quals)
	{
		OpExpr	   *op = lfirst(lc);

		if (!IsA(op, OpExpr) || list_length(op->args) != 2 ||
			saga_has_sublink((Node *) op) ||
			!op_mergejoinable(op->opno, exprType(linitial(op->args))))
			continue;
		note_equality(&equalities, linitial(op->args), lsecond(op->args));
		note_equality(&equalities, lsecond(op->args), linitial(op->args));
	}
	return equalities;
}

/*
 * How many of the entries one row of 'rtindex' determines by the conditions:
 * the table at the many end of foreign keys determines the most.
 */
int
saga_determines(SagaPlanner *planner, Query *query, List *quals, int rtindex,
				Bitmapset *entries)
{
	List	   *equalities = find_equalities(quals);
	Bitmapset  *known = bms_make_singleton(rtindex);
	bool		grew = true;

	while (grew)
	{
		int			other = -1;

		grew = false;
		while ((other = bms_next_member(entries, other)) >= 0)
		{
			RangeTblEntry *rte = rt_fetch(other, query->rtable);
			List	   *key;

			if (bms_is_member(other, known) || !saga_rte_input(rte))
				continue;
			key = saga_unique_key(planner->program, rte);
			if (saga_one_row(planner->program, rte) ||
				(key != NIL && key_determined(equalities, other, key, known)))
			{
				known = bms_add_member(known, other);
				grew = true;
			}
		}
	}
	return bms_num_members(known) - 1;
}

/*
 * Vars that tell the rows of a core apart: the keys of its inputs, without
 * those that others determine (a foreign key).  NIL if an input has none.
 */
List *
saga_core_identity(SagaPlanner *planner, Query *core)
{
	List	   *equalities =
		find_equalities(make_ands_implicit((Expr *) core->jointree->quals));
	Bitmapset  *all = NULL;
	Bitmapset  *kept;
	List	   *keys = NIL;		/* parallel to fromlist */
	List	   *result = NIL;
	ListCell   *lc;
	ListCell   *k;

	foreach(lc, core->jointree->fromlist)
	{
		int			rtindex = castNode(RangeTblRef, lfirst(lc))->rtindex;
		RangeTblEntry *rte = rt_fetch(rtindex, core->rtable);
		List	   *key = saga_rte_input(rte) ?
			saga_unique_key(planner->program, rte) : NIL;

		if (key == NIL && !saga_one_row(planner->program, rte))
			return NIL;
		keys = lappend(keys, key);
		all = bms_add_member(all, rtindex);
	}
	kept = bms_copy(all);
	forboth(lc, core->jointree->fromlist, k, keys)
	{
		int			candidate = castNode(RangeTblRef, lfirst(lc))->rtindex;
		Bitmapset  *known = bms_del_member(bms_copy(kept), candidate);
		bool		grew = true;

		if (lfirst(k) == NIL)
		{
			kept = known;
			continue;
		}
		while (grew && !bms_is_member(candidate, known))
		{
			ListCell   *lc2;
			ListCell   *k2;

			grew = false;
			forboth(lc2, core->jointree->fromlist, k2, keys)
			{
				int			rtindex = castNode(RangeTblRef, lfirst(lc2))->rtindex;

				if (!bms_is_member(rtindex, known) &&
					(lfirst(k2) == NIL ||
					 key_determined(equalities, rtindex, lfirst(k2), known)))
				{
					known = bms_add_member(known, rtindex);
					grew = true;
				}
			}
		}
		if (bms_is_member(candidate, known))
			kept = bms_del_member(kept, candidate);
	}
	forboth(lc, core->jointree->fromlist, k, keys)
	{
		int			rtindex = castNode(RangeTblRef, lfirst(lc))->rtindex;
		ListCell   *a;

		if (!bms_is_member(rtindex, kept))
			continue;
		foreach(a, (List *) lfirst(k))
			result = lappend(result,
							 saga_var_of(core, rtindex, lfirst_int(a)));
	}
	/* one row in all, told apart by nothing */
	if (result == NIL)
		result = list_make1(makeBoolConst(true, false));
	return list_length(result) <= MAX_KEY_COLUMNS ? result : NIL;
}

/* ---- the block ---- */

static SagaColumn *
add_output(SagaBlock *block, Query *core, TargetEntry *tle, bool top, int i)
{
	char	   *name = tle->resjunk ? psprintf("saga_o%d", i) :
		top ? tle->resname : psprintf("c%d", i);
	SagaColumn *column = saga_column_of_expr(name, (Node *) tle->expr);

	block->columns = lappend(block->columns, column);
	saga_target(core, copyObject(tle->expr), name);
	return column;
}

/* query: linear, neither grouped nor distinct. */
SagaBlock *
saga_rows_block(SagaPlanner *planner, Query *query, int number, bool top)
{
	SagaBlock  *block = palloc0(sizeof(SagaBlock));
	Query	   *core = makeNode(Query);
	List	   *identity = NIL;
	List	   *from = NIL;		/* target entries ... */
	List	   *at = NIL;		/* ... and where in storage they are */
	Query	   *view;
	ListCell   *lc;
	int			i;

	core->commandType = CMD_SELECT;
	core->canSetTag = true;
	core->rtable = copyObject(query->rtable);
	core->jointree = copyObject(query->jointree);
	if (!query->hasTargetSRFs)
		identity = saga_core_identity(planner, core);

	block->kind = identity != NIL ? SAGA_BLOCK_ROWS : SAGA_BLOCK_COUNTED;
	i = 0;
	foreach(lc, identity)
	{
		Node	   *key = lfirst(lc);
		SagaColumn *column = NULL;
		ListCell   *t;
		int			j = 0;

		foreach(t, query->targetList)
		{
			TargetEntry *tle = lfirst_node(TargetEntry, t);

			j++;
			if (equal(tle->expr, key) && !list_member_ptr(from, tle))
			{
				column = add_output(block, core, tle, top, j);
				from = lappend(from, tle);
				at = lappend_int(at, list_length(block->columns));
				break;
			}
		}
		if (column == NULL)
		{
			column = saga_column_of_expr(psprintf("saga_k%d", ++i), key);
			block->columns = lappend(block->columns, column);
			saga_target(core, copyObject((Expr *) key), column->name);
		}
		column->notnull = saga_expr_notnull(query, key);
	}
	block->nkeys = list_length(block->columns);
	i = 0;
	foreach(lc, query->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		i++;
		if (list_member_ptr(from, tle))
			continue;
		add_output(block, core, tle, top, i);
		from = lappend(from, tle);
		at = lappend_int(at, list_length(block->columns));
	}
	if (block->kind == SAGA_BLOCK_COUNTED)
	{
		block->columns = lappend(block->columns,
								 saga_column("saga_h", INT8OID, -1, InvalidOid));
		block->columns = lappend(block->columns,
								 saga_column("saga_n", INT8OID, -1, InvalidOid));
		block->multiplicity = "s.saga_n";
		block->repeats = true;
	}
	block->cores = saga_expand_unions(core);
	if (block->kind == SAGA_BLOCK_ROWS && list_length(block->cores) != 1)
		elog(ERROR, "rows of a union have keys");

	view = saga_parse_over_storage(number, block->columns, "true");
	view->targetList = NIL;
	foreach(lc, query->targetList)
	{
		TargetEntry *tle = copyObject(lfirst_node(TargetEntry, lc));
		ListCell   *f;
		ListCell   *a;

		forboth(f, from, a, at)
			if (lfirst(f) == lfirst(lc))
				tle->expr = (Expr *) saga_column_var(1, lfirst_int(a),
													 list_nth(block->columns,
															  lfirst_int(a) - 1));
		view->targetList = lappend(view->targetList, tle);
	}
	saga_set_view(block, view, top);

	/* does the output hold the identity? */
	for (int key = 1; key <= block->nkeys; key++)
	{
		int			position = 0;
		bool		found = false;

		foreach(lc, block->view->targetList)
		{
			TargetEntry *tle = lfirst_node(TargetEntry, lc);

			position++;
			if (!tle->resjunk && ((Var *) tle->expr)->varattno == key)
			{
				block->unique = lappend_int(block->unique, position);
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
	return block;
}

/* ---- statements ---- */

/* The columns before saga_h and saga_n. */
static List *
plain_columns(SagaBlock *block)
{
	return list_copy_head(block->columns, list_length(block->columns) - 2);
}

char *
saga_rows_fresh(SagaProgram *program, SagaStage *stage)
{
	SagaBlock  *block = stage->block;
	char	   *rows = saga_core_new(program, block->cores);

	if (block->kind == SAGA_BLOCK_COUNTED)
		return psprintf("SELECT %s, %s AS saga_h, d.saga_w AS saga_n FROM (%s) d",
						saga_column_list(plain_columns(block), -1, "d"),
						saga_hash_sql(plain_columns(block), "d"),
						saga_consolidate(plain_columns(block), rows));
	return psprintf("SELECT %s FROM (%s) d",
					saga_column_list(block->columns, -1, "d"), rows);
}

/* The stage's delta, from storage rows with weights in 'g'. */
SagaStatement *
saga_put_out(SagaProgram *program, SagaStage *stage, const char *g)
{
	return saga_statement(saga_consolidate(stage->block->out,
										   weighted_output(program, stage, g)),
						  stage->delta, NULL);
}

static List *
keyed_rows(SagaProgram *program, SagaStage *stage, char *terms, bool sums)
{
	SagaBlock  *block = stage->block;
	char	   *g = psprintf("saga_g%d", stage->number);
	char	   *names = saga_column_list(block->columns, -1, NULL);
	List	   *result = NIL;
	StringInfoData buf;
	ListCell   *lc;
	int			i = 0;

	/* the terms of one change are rows as they are: no need to sum them up */
	if (sums)
		terms = saga_consolidate(block->columns, terms);
	result = lappend(result, saga_statement(terms, g, NULL));
	result = lappend(result,
					 saga_statement(psprintf("DELETE FROM %s s USING %s g WHERE %s AND g.saga_w < 0 AND NOT EXISTS (SELECT FROM %s p WHERE %s AND p.saga_w > 0)",
											 stage->storage, g,
											 saga_key_join(block->columns, block->nkeys, "s", "g"),
											 g,
											 saga_key_join(block->columns, block->nkeys, "p", "g")),
									NULL, g));
	initStringInfo(&buf);
	appendStringInfo(&buf, "INSERT INTO %s (%s) SELECT %s FROM %s g WHERE saga_w > 0 ON CONFLICT (%s) DO UPDATE SET ",
					 psprintf("%s AS s", stage->storage), names, names, g,
					 saga_column_list(block->columns, block->nkeys, NULL));
	foreach(lc, block->columns)
	{
		SagaColumn *column = lfirst(lc);
		const char *name = quote_identifier(column->name);

		appendStringInfo(&buf, "%s%s = excluded.%s", i++ == 0 ? "" : ", ", name,
						 name);
	}
	appendStringInfo(&buf, " WHERE %s OPERATOR(pg_catalog.*<>) %s",
					 saga_row_sql(block->columns, "s"),
					 saga_row_sql(block->columns, "excluded"));
	result = lappend(result, saga_statement(buf.data, NULL, g));
	if (stage->feeds)
		result = lappend(result, saga_put_out(program, stage, g));
	return result;
}

static List *
counted_rows(SagaProgram *program, SagaStage *stage, char *terms)
{
	SagaBlock  *block = stage->block;
	char	   *g = psprintf("saga_g%d", stage->number);
	List	   *plain = plain_columns(block);
	char	   *match = psprintf("s.saga_h = g.saga_h AND %s OPERATOR(pg_catalog.*=) %s",
								 saga_row_sql(plain, "s"), saga_row_sql(plain, "g"));
	List	   *result = NIL;

	result = lappend(result,
					 saga_statement(psprintf("SELECT %s, %s AS saga_h, d.saga_w FROM (%s) d",
											 saga_column_list(plain, -1, "d"),
											 saga_hash_sql(plain_columns(block), "d"),
											 saga_consolidate(plain, terms)),
									g, NULL));
	result = lappend(result,
					 saga_statement(psprintf("UPDATE %s s SET saga_n = s.saga_n + g.saga_w FROM %s g WHERE %s",
											 stage->storage, g, match),
									NULL, g));
	result = lappend(result,
					 saga_statement(psprintf("INSERT INTO %s (%s) SELECT %s, g.saga_h, g.saga_w FROM %s g WHERE NOT EXISTS (SELECT FROM %s s WHERE %s)",
											 stage->storage,
											 saga_column_list(block->columns, -1, NULL),
											 saga_column_list(plain, -1, "g"), g,
											 stage->storage, match),
									NULL, g));
	result = lappend(result,
					 saga_statement(psprintf("DELETE FROM %s s USING %s g WHERE g.saga_w < 0 AND s.saga_n = 0 AND %s",
											 stage->storage, g, match),
									NULL, g));
	if (stage->feeds)
		result = lappend(result, saga_put_out(program, stage, g));
	return result;
}

List *
saga_rows_maintain(SagaProgram *program, SagaStage *stage, SagaChanges *changes)
{
	SagaBlock  *block = stage->block;
	int			nterms;
	char	   *terms = saga_core_terms(program, block->cores, changes, &nterms);

	if (block->kind == SAGA_BLOCK_COUNTED)
		return counted_rows(program, stage, terms);
	return keyed_rows(program, stage, terms, nterms > 1);
}
