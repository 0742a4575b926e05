/*
 * projection_program.c
 *		The contract of projection.h that the planner fulfils: programs, their
 *		storage, and the statements of a stage, whatever its kind.
 *
 * Called by the rest of the extension.  Reads catalogs only.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_node.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"

#include "projection_plan.h"

static const char *const class_names[] = {
	[SAGA_CLASS_DELTA] = "delta",
	[SAGA_CLASS_DISTINCT] = "distinct",
	[SAGA_CLASS_MIN_MAX] = "min/max",
	[SAGA_CLASS_GROUP] = "group recompute",
	[SAGA_CLASS_KEY] = "key recompute",
	[SAGA_CLASS_FULL] = "full diff",
};

const char *
saga_class_name(SagaClass class)
{
	return class_names[class];
}

bool
saga_class_from_name(const char *name, SagaClass *class)
{
	for (int i = 0; i < (int) lengthof(class_names); i++)
		if (strcmp(class_names[i], name) == 0)
		{
			*class = i;
			return true;
		}
	return false;
}

/* ---- building ---- */

static char *
describe(SagaBlock *block, List *relids, Bitmapset *stages)
{
	static const char *const words[] = {
		[SAGA_BLOCK_ROWS] = "rows",
		[SAGA_BLOCK_COUNTED] = "counted rows",
		[SAGA_BLOCK_GROUPS] = "aggregate",
		[SAGA_BLOCK_SETS] = "set operation",
		[SAGA_BLOCK_KEYED] = "query block",
		[SAGA_BLOCK_FULL] = "query block",
	};
	int			tables = list_length(relids);
	int			others = bms_num_members(stages);
	StringInfoData buf;

	initStringInfo(&buf);
	if (block->kind == SAGA_BLOCK_GROUPS && block->pieces == NIL &&
		block->view->havingQual == NULL)
		appendStringInfoString(&buf, "groups");
	else
		appendStringInfoString(&buf, words[block->kind]);
	if (tables > 0)
		appendStringInfo(&buf, " over %d table%s", tables,
						 tables == 1 ? "" : "s");
	if (others > 0)
		appendStringInfo(&buf, " %s %d stage%s", tables > 0 ? "and" : "over",
						 others, others == 1 ? "" : "s");
	return buf.data;
}

/* The next stage; its number is how many there were. */
int
saga_stage_add(SagaPlanner *planner, SagaBlock *block, SagaClass class,
			   const char *reason)
{
	SagaProgram *program = planner->program;
	SagaStage  *stage = palloc0(sizeof(SagaStage));
	List	   *relids = NIL;
	ListCell   *lc;

	stage->number = list_length(program->stages);
	stage->class = class;
	stage->reason = pstrdup(reason);
	stage->block = block;
	stage->storage = psprintf(SAGA_DATA_SCHEMA ".p" INT64_FORMAT "_%d",
							  program->id, stage->number);
	stage->delta = psprintf("saga_delta_s%d", stage->number);
	foreach(lc, block->cores)
		saga_collect_inputs(lfirst(lc), &relids, &stage->stages);
	saga_collect_inputs((Node *) block->query, &relids, &stage->stages);
	stage->what = describe(block, relids, stage->stages);
	program->stages = lappend(program->stages, stage);
	return stage->number;
}

typedef struct ColumnsContext
{
	List	   *queries;		/* the levels being walked, innermost first */
	List	   *sources;
} ColumnsContext;

static bool
columns_walker(Node *node, ColumnsContext *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;
		Query	   *query = list_nth(context->queries, var->varlevelsup);
		RangeTblEntry *rte = rt_fetch(var->varno, query->rtable);
		ListCell   *lc;

		if (rte->rtekind != RTE_RELATION)
			return false;
		foreach(lc, context->sources)
		{
			SagaSource *source = lfirst(lc);

			if (source->relid != rte->relid)
				continue;
			if (var->varattno > 0)
				source->columns = bms_add_member(source->columns,
												 var->varattno);
			else if (var->varattno == 0)
				for (int i = 0; i < source->desc->natts; i++)
					if (!TupleDescAttr(source->desc, i)->attisdropped)
						source->columns = bms_add_member(source->columns, i + 1);
		}
		return false;
	}
	if (IsA(node, Query))
	{
		context->queries = lcons(node, context->queries);
		query_tree_walker((Query *) node, columns_walker, (void *) context,
						  QTW_IGNORE_JOINALIASES);
		context->queries = list_delete_first(context->queries);
		return false;
	}
	return expression_tree_walker(node, columns_walker, (void *) context);
}

static void
find_sources(SagaProgram *program)
{
	List	   *relids = NIL;
	Bitmapset  *ignored = NULL;
	ColumnsContext context = {NIL, NIL};
	ListCell   *lc;
	ListCell   *q;

	foreach(lc, program->stages)
	{
		SagaBlock  *block = ((SagaStage *) lfirst(lc))->block;

		foreach(q, block->cores)
			saga_collect_inputs(lfirst(q), &relids, &ignored);
		saga_collect_inputs((Node *) block->query, &relids, &ignored);
	}
	list_sort(relids, list_oid_cmp);
	foreach(lc, relids)
	{
		SagaSource *source = palloc0(sizeof(SagaSource));
		Relation	rel = table_open(lfirst_oid(lc), AccessShareLock);

		source->relid = lfirst_oid(lc);
		source->name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												  RelationGetRelationName(rel));
		source->desc = CreateTupleDescCopyConstr(RelationGetDescr(rel));
		source->delta = psprintf("saga_delta_%u", source->relid);
		table_close(rel, NoLock);
		program->sources = lappend(program->sources, source);
	}

	context.sources = program->sources;
	foreach(lc, program->stages)
	{
		SagaStage  *stage = lfirst(lc);
		List	   *mine = NIL;
		ListCell   *r;

		foreach(q, stage->block->cores)
		{
			columns_walker(lfirst(q), &context);
			saga_collect_inputs(lfirst(q), &mine, &ignored);
		}
		columns_walker((Node *) stage->block->query, &context);
		saga_collect_inputs((Node *) stage->block->query, &mine, &ignored);
		foreach(r, mine)
			for (int i = 0; i < list_length(relids); i++)
				if (list_nth_oid(relids, i) == lfirst_oid(r))
					stage->sources = bms_add_member(stage->sources, i);
	}
}

static char *
shape_of(SagaProgram *program)
{
	StringInfoData buf;
	ListCell   *lc;
	uint64		one;
	uint64		two;

	initStringInfo(&buf);
	foreach(lc, program->stages)
	{
		SagaStage  *stage = lfirst(lc);
		ListCell   *c;

		appendStringInfo(&buf, "%d:%d:%d(", stage->number, stage->block->kind,
						 stage->block->nkeys);
		foreach(c, stage->block->columns)
		{
			SagaColumn *column = lfirst(c);

			appendStringInfo(&buf, "%s %s,", column->name,
							 saga_type_sql(column));
		}
		appendStringInfo(&buf, ")%s;",
						 stage->block->multiplicity == NULL ? "" :
						 stage->block->multiplicity);
	}
	for (int i = 0; i < program->result->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(program->result, i);

		appendStringInfo(&buf, "%s %s,", NameStr(att->attname),
						 format_type_with_typemod(att->atttypid,
												  att->atttypmod));
	}
	one = DatumGetUInt64(hash_any_extended((unsigned char *) buf.data, buf.len, 1));
	two = DatumGetUInt64(hash_any_extended((unsigned char *) buf.data, buf.len, 2));
	return psprintf("%016llx%016llx", (unsigned long long) one,
					(unsigned long long) two);
}

SagaProgram *
saga_program_build(const char *text, int64 id, List *key)
{
	SagaProgram *program = palloc0(sizeof(SagaProgram));
	SagaPlanner planner = {program, key, NIL, NIL, true};
	bool		pushed = false;
	Query	   *query;
	SagaStage  *last;
	ListCell   *lc;

	if (!ActiveSnapshotSet())
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		pushed = true;
	}
	program->id = id;
	query = saga_query_read(text, &program->views);
	saga_query_check_output(query);
	program->live_query = saga_deparse(program, query);
	program->result = ExecCleanTypeFromTL(query->targetList);

	(void) saga_plan_query(&planner, query, true);
	if (planner.key != NIL)
		SAGA_REFUSE(errmsg("key columns cannot be chosen for this query"),
					errdetail("It is kept up without recomputing by key."),
					errhint("Leave the key out."));
	find_sources(program);
	if (program->sources == NIL)
		SAGA_REFUSE(errmsg("the query reads no table"),
					errdetail("There is nothing to follow."),
					errhint("A view will do."));
	saga_check_rights(program);

	foreach(lc, program->stages)
	{
		SagaStage  *stage = lfirst(lc);
		int			input = -1;

		while ((input = bms_next_member(stage->stages, input)) >= 0)
			((SagaStage *) list_nth(program->stages, input))->feeds = true;
		program->class = Max(program->class, stage->class);
		saga_stage_advise(program, stage);
	}
	last = llast(program->stages);
	program->stored_query = saga_output_sql(program, last->number);
	program->deterministic = planner.deterministic;
	program->shape = shape_of(program);
	if (pushed)
		PopActiveSnapshot();
	return program;
}

/* ---- storage ---- */

/* How many key columns help to find a row. */
#define MAX_INDEXED 4

/*
 * An index to find rows by key: on columns that are never too long for a
 * btree, or, if there is none, on a hash.
 */
static char *
key_index(SagaStage *stage)
{
	List	   *list = NIL;
	SagaColumn *first = linitial(stage->block->columns);

	for (int i = 0; i < stage->block->nkeys; i++)
	{
		SagaColumn *column = list_nth(stage->block->columns, i);

		if (list_length(list) < MAX_INDEXED &&
			(get_typlen(column->type) > 0 || column->type == NUMERICOID ||
			 column->typmod >= 0))
			list = lappend(list, column);
	}
	if (list == NIL && saga_type_hashable(first->type))
		return psprintf("CREATE INDEX ON %s USING hash (%s)", stage->storage,
						quote_identifier(first->name));
	return psprintf("CREATE INDEX ON %s (%s)", stage->storage,
					saga_column_list(list == NIL ? list_make1(first) : list,
									 -1, NULL));
}

List *
saga_program_storage_ddl(SagaProgram *program)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, program->stages)
	{
		SagaStage  *stage = lfirst(lc);
		SagaBlock  *block = stage->block;
		StringInfoData buf;
		ListCell   *c;

		initStringInfo(&buf);
		appendStringInfo(&buf, "CREATE TABLE %s (", stage->storage);
		foreach(c, block->columns)
		{
			SagaColumn *column = lfirst(c);

			appendStringInfo(&buf, "%s%s %s", c == list_head(block->columns) ? "" : ", ",
							 quote_identifier(column->name),
							 saga_type_sql(column));
		}
		/* room on the page keeps updates of counts and sums heap-only */
		appendStringInfo(&buf, ") WITH (fillfactor = %d)",
						 block->kind == SAGA_BLOCK_GROUPS ? 50 : 80);
		result = lappend(result, buf.data);

		switch (block->kind)
		{
			case SAGA_BLOCK_ROWS:
			case SAGA_BLOCK_GROUPS:
			case SAGA_BLOCK_SETS:
				result = lappend(result,
								 psprintf("CREATE UNIQUE INDEX ON %s (%s) NULLS NOT DISTINCT",
										  stage->storage,
										  saga_column_list(block->columns, block->nkeys, NULL)));
				break;
			case SAGA_BLOCK_COUNTED:
				result = lappend(result,
								 psprintf("CREATE INDEX ON %s (saga_h)", stage->storage));
				result = lappend(result,
								 psprintf("CREATE INDEX ON %s (saga_n) WHERE saga_n > 1",
										  stage->storage));
				break;
			case SAGA_BLOCK_KEYED:
				result = lappend(result, key_index(stage));
				break;
			case SAGA_BLOCK_FULL:
				break;
		}
	}
	return result;
}

/* Is an output column one of storage?  Its name there, or an expression. */
static char *
stored_as(SagaProgram *program, SagaStage *stage, const char *name)
{
	ListCell   *lc;

	foreach(lc, stage->block->view->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (tle->resjunk || strcmp(tle->resname, name) != 0)
			continue;
		if (IsA(tle->expr, Var))
		{
			SagaColumn *column = list_nth(stage->block->columns,
										  ((Var *) tle->expr)->varattno - 1);

			return pstrdup(quote_identifier(column->name));
		}
		if (saga_has_sublink((Node *) tle->expr))
			SAGA_REFUSE(errmsg("column \"%s\" cannot be indexed", name),
						errdetail("It is computed from more than one stored row."),
						errhint("Index other columns."));
		return psprintf("(%s)",
						saga_expr_sql(program, stage->block->view, tle->expr));
	}
	return NULL;
}

char *
saga_program_index_ddl(SagaProgram *program, const char *columns)
{
	SagaStage  *stage = llast(program->stages);
	List	   *raw = raw_parser(psprintf("CREATE INDEX ON x (%s)", columns),
								 RAW_PARSE_DEFAULT);
	IndexStmt  *index;
	StringInfoData buf;
	ListCell   *lc;

	if (list_length(raw) != 1 ||
		!IsA(linitial_node(RawStmt, raw)->stmt, IndexStmt))
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("\"%s\" is no list of columns", columns)));
	index = castNode(IndexStmt, linitial_node(RawStmt, raw)->stmt);
	if (index->whereClause != NULL || index->options != NIL ||
		index->indexIncludingParams != NIL || index->tableSpace != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("\"%s\" is no list of columns", columns),
				 errhint("Write as in \"month, revenue DESC\".")));
	initStringInfo(&buf);
	appendStringInfo(&buf, "CREATE INDEX ON %s (", stage->storage);
	foreach(lc, index->indexParams)
	{
		IndexElem  *elem = lfirst_node(IndexElem, lc);
		char	   *stored;

		if (elem->name == NULL || elem->opclass != NIL || elem->collation != NIL)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("an index of a projection is on output columns"),
					 errhint("Write as in \"month, revenue DESC\".")));
		stored = stored_as(program, stage, elem->name);
		if (stored == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" is no output column of the projection",
							elem->name)));
		appendStringInfo(&buf, "%s%s%s%s", lc == list_head(index->indexParams) ? "" : ", ",
						 stored,
						 elem->ordering == SORTBY_DESC ? " DESC" : "",
						 elem->nulls_ordering == SORTBY_NULLS_FIRST ? " NULLS FIRST" :
						 elem->nulls_ordering == SORTBY_NULLS_LAST ? " NULLS LAST" : "");
	}
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/* ---- upkeep ---- */

/* The rows that storage should hold, in its columns' order. */
char *
saga_stage_fresh(SagaProgram *program, SagaStage *stage)
{
	switch (stage->block->kind)
	{
		case SAGA_BLOCK_ROWS:
		case SAGA_BLOCK_COUNTED:
			return saga_rows_fresh(program, stage);
		case SAGA_BLOCK_GROUPS:
			return saga_groups_fresh(program, stage, NULL);
		case SAGA_BLOCK_SETS:
			return saga_sets_fresh(program, stage);
		case SAGA_BLOCK_KEYED:
		case SAGA_BLOCK_FULL:
			return saga_keyed_fresh(program, stage, NULL);
	}
	return NULL;
}

List *
saga_stage_fill(SagaProgram *program, SagaStage *stage)
{
	return list_make1(saga_statement(psprintf("INSERT INTO %s (%s) %s",
											  stage->storage,
											  saga_column_list(stage->block->columns, -1, NULL),
											  saga_stage_fresh(program, stage)),
									 NULL, NULL));
}

List *
saga_stage_diff(SagaProgram *program, SagaStage *stage)
{
	return saga_diff_statements(program, stage,
								saga_stage_fresh(program, stage), NULL);
}

List *
saga_stage_maintain(SagaProgram *program, SagaStage *stage,
					Bitmapset *changed_sources, Bitmapset *changed_stages)
{
	SagaChanges changes = {program, changed_sources, changed_stages};

	switch (stage->block->kind)
	{
		case SAGA_BLOCK_ROWS:
		case SAGA_BLOCK_COUNTED:
			return saga_rows_maintain(program, stage, &changes);
		case SAGA_BLOCK_GROUPS:
			return saga_groups_maintain(program, stage, &changes);
		case SAGA_BLOCK_SETS:
			return saga_sets_maintain(program, stage, &changes);
		case SAGA_BLOCK_KEYED:
			return saga_keyed_maintain(program, stage, &changes);
		case SAGA_BLOCK_FULL:
			return saga_stage_diff(program, stage);
	}
	return NIL;
}
