/*
 * projection_apply.c
 *		Running the program of a projection: the deltas of a batch, a fill, a
 *		rebuild by difference, a check.
 *
 * Called by the projector within its batch transaction.  The statements are
 * the planner's; here is decided which of them run, in which order, and on
 * which plans.  They run as the owner of the projection, and what they write
 * to storage carries an origin that our own decoding leaves out.
 *
 * Every statement sees sources under the one snapshot of the transaction (SPI
 * takes a fresh command id and nothing else in a REPEATABLE READ transaction)
 * and storage with what earlier statements wrote.  Deltas and captured rows
 * are named tuplestores.  The planner learns their size when a plan is made
 * and never again, so plans are kept per size.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "pgstat.h"
#include "replication/origin.h"
#include "tcop/dest.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/queryenvironment.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "compat.h"
#include "projection.h"
#include "spi_util.h"

#define MAX_PLANS 256			/* of a projection */
#define MAX_LISTS 128			/* stages times sets of changes */
#define CAPTURE_MEMORY_KB (64 * 1024)

typedef enum ApplyMode
{
	APPLY_MAINTAIN,
	APPLY_FILL,
	APPLY_DIFF,
} ApplyMode;

/* A plan, good for named tuplestores of these shapes. */
typedef struct ApplyPlan
{
	dlist_node	node;			/* in apply->plans, last used first */
	struct ApplyStatement *statement;
	char	   *shapes;			/* of statement->uses, in that order */
	SPIPlanPtr	plan;
} ApplyPlan;

typedef struct ApplyStatement
{
	SagaStatement text;
	bool		analysed;
	List	   *uses;			/* of char *: tuplestores it reads */
	List	   *plans;			/* of ApplyPlan * */
} ApplyStatement;

/* What a stage runs for one set of changes. */
typedef struct ApplyList
{
	dlist_node	node;			/* in apply->lists, last used first */
	MemoryContext context;
	SagaStage  *stage;
	ApplyMode	mode;
	Bitmapset  *sources;
	Bitmapset  *stages;
	List	   *statements;		/* of ApplyStatement * */
} ApplyList;

struct SagaApply
{
	MemoryContext context;
	SagaProgram *program;
	Oid			owner;
	dlist_head	lists;
	int			nlists;
	dlist_head	plans;
	int			nplans;
	char	   *check;			/* the statement of saga_apply_check() */
};

/* A named tuplestore of a run. */
typedef struct ApplyRows
{
	EphemeralNamedRelationData enr;
	int64		rows;
	uint32		layout;			/* digest of the types of its columns */
	bool		ours;			/* captured: ends with the run */
} ApplyRows;

typedef struct ApplyRun
{
	SagaApply  *apply;
	MemoryContext context;
	List	   *rows;			/* of ApplyRows * */
	SagaApplyResult *result;
} ApplyRun;

/* ---------------------------------------------------------- life */

SagaApply *
saga_apply_make(SagaProgram *program, Oid owner)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "saga apply",
												  ALLOCSET_DEFAULT_SIZES);
	SagaApply  *apply = MemoryContextAllocZero(context, sizeof(SagaApply));

	apply->context = context;
	apply->program = program;
	apply->owner = owner;
	dlist_init(&apply->lists);
	dlist_init(&apply->plans);
	return apply;
}

static void
forget_plan(SagaApply *apply, ApplyPlan *plan)
{
	dlist_delete(&plan->node);
	apply->nplans--;
	plan->statement->plans = list_delete_ptr(plan->statement->plans, plan);
	SPI_freeplan(plan->plan);
	pfree(plan->shapes);
	pfree(plan);
}

static void
forget_list(SagaApply *apply, ApplyList *list)
{
	ListCell   *lc;

	foreach(lc, list->statements)
	{
		ApplyStatement *statement = lfirst(lc);

		while (statement->plans != NIL)
			forget_plan(apply, linitial(statement->plans));
	}
	dlist_delete(&list->node);
	apply->nlists--;
	MemoryContextDelete(list->context);
}

void
saga_apply_free(SagaApply *apply)
{
	while (!dlist_is_empty(&apply->lists))
		forget_list(apply, dlist_head_element(ApplyList, node, &apply->lists));
	MemoryContextDelete(apply->context);
}

/* -------------------------------------------------- named tuplestores */

static ApplyRows *
find_rows(ApplyRun *run, const char *name)
{
	ListCell   *lc;

	foreach(lc, run->rows)
	{
		ApplyRows  *rows = lfirst(lc);

		if (strcmp(rows->enr.md.name, name) == 0)
			return rows;
	}
	return NULL;
}

static void
forget_rows(ApplyRun *run, ApplyRows *rows)
{
	SPI_unregister_relation(rows->enr.md.name);
	run->rows = list_delete_ptr(run->rows, rows);
	if (rows->ours)
		tuplestore_end(rows->enr.reldata);
}

/* A capture of the same name takes the place of an earlier one. */
static void
name_rows(ApplyRun *run, const char *name, TupleDesc desc,
		  Tuplestorestate *store, int64 count, bool ours)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);
	ApplyRows  *rows = find_rows(run, name);
	int			rc;

	if (rows != NULL)
		forget_rows(run, rows);
	rows = palloc0(sizeof(ApplyRows));
	rows->enr.md.name = pstrdup(name);
	rows->enr.md.reliddesc = InvalidOid;
	rows->enr.md.tupdesc = desc;
	rows->enr.md.enrtype = ENR_NAMED_TUPLESTORE;
	rows->enr.md.enrtuples = count;
	rows->enr.reldata = store;
	rows->rows = count;
	for (int i = 0; i < desc->natts; i++)
		rows->layout = hash_combine(rows->layout,
									TupleDescAttr(desc, i)->atttypid);
	rows->ours = ours;
	rc = SPI_register_relation(&rows->enr);
	if (rc != SPI_OK_REL_REGISTER)
		elog(ERROR, "could not name the rows \"%s\": %s", name,
			 SPI_result_code_string(rc));
	run->rows = lappend(run->rows, rows);
	MemoryContextSwitchTo(old);
}

static bool
has_rows(ApplyRun *run, const char *name)
{
	ApplyRows  *rows = find_rows(run, name);

	return rows != NULL && rows->rows > 0;
}

/* Where the rows of a capturing statement go. */
typedef struct Capture
{
	DestReceiver pub;
	ApplyRun   *run;
	TupleDesc	desc;
	Tuplestorestate *store;
	int64		rows;
} Capture;

static void
capture_startup(DestReceiver *self, int operation, TupleDesc desc)
{
	Capture    *capture = (Capture *) self;
	MemoryContext old = MemoryContextSwitchTo(capture->run->context);

	capture->desc = CreateTupleDescCopy(desc);
	MemoryContextSwitchTo(old);
}

static bool
capture_row(TupleTableSlot *slot, DestReceiver *self)
{
	Capture    *capture = (Capture *) self;

	tuplestore_puttupleslot(capture->store, slot);
	capture->rows++;
	return true;
}

static void
capture_nothing(DestReceiver *self)
{
}

static void
capture_begin(Capture *capture, ApplyRun *run)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);

	memset(capture, 0, sizeof(*capture));
	capture->pub.receiveSlot = capture_row;
	capture->pub.rStartup = capture_startup;
	capture->pub.rShutdown = capture_nothing;
	capture->pub.rDestroy = capture_nothing;
	capture->pub.mydest = DestTuplestore;
	capture->run = run;
	capture->store = tuplestore_begin_heap(false, false, CAPTURE_MEMORY_KB);
	MemoryContextSwitchTo(old);
}

/* -------------------------------------------------------------- plans */

static bool
find_used_rows(Node *node, List **uses)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;

		if (rte->rtekind == RTE_NAMEDTUPLESTORE)
			*uses = lappend(*uses, rte->enrname);
		return false;
	}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, find_used_rows, uses,
								 QTW_EXAMINE_RTES_BEFORE);
	return expression_tree_walker(node, find_used_rows, uses);
}

/* Which tuplestores the statement reads, from its first analysis. */
static void
analyse_uses(ApplyStatement *statement, SPIPlanPtr plan)
{
	MemoryContext old;
	ListCell   *lc;
	List	   *uses = NIL;

	foreach(lc, SPI_plan_get_plan_sources(plan))
	{
		CachedPlanSource *source = lfirst(lc);
		ListCell   *lq;

		foreach(lq, source->query_list)
			(void) find_used_rows(lfirst(lq), &uses);
	}
	old = MemoryContextSwitchTo(GetMemoryChunkContext(statement));
	foreach(lc, uses)
	{
		bool		known = false;
		ListCell   *lu;

		foreach(lu, statement->uses)
			known |= strcmp(lfirst(lu), lfirst(lc)) == 0;
		if (!known)
			statement->uses = lappend(statement->uses, pstrdup(lfirst(lc)));
	}
	statement->analysed = true;
	MemoryContextSwitchTo(old);
}

/*
 * What a plan depends on: the number of rows, by its decimal digits, and the
 * types of the columns, which differ when another statement captures under
 * the same name.
 */
static char *
shapes_now(ApplyRun *run, ApplyStatement *statement)
{
	StringInfoData shapes;
	ListCell   *lc;

	initStringInfo(&shapes);
	foreach(lc, statement->uses)
	{
		ApplyRows  *rows = find_rows(run, lfirst(lc));
		int			digits = 0;

		if (rows == NULL)
			continue;
		for (int64 n = rows->rows; n > 0; n /= 10)
			digits++;
		appendStringInfo(&shapes, "%x%c", rows->layout, 'a' + digits);
	}
	return shapes.data;
}

static SPIPlanPtr
plan_of(ApplyRun *run, ApplyStatement *statement)
{
	SagaApply  *apply = run->apply;
	SPIPlanPtr	prepared = NULL;
	ApplyPlan  *plan;
	MemoryContext old;
	ListCell   *lc;

	if (!statement->analysed)
	{
		prepared = SPI_prepare(statement->text.sql, 0, NULL);
		if (prepared != NULL)
			analyse_uses(statement, prepared);
	}
	else
	{
		char	   *shapes = shapes_now(run, statement);

		foreach(lc, statement->plans)
		{
			plan = lfirst(lc);
			if (strcmp(plan->shapes, shapes) == 0)
			{
				dlist_move_head(&apply->plans, &plan->node);
				return plan->plan;
			}
		}
		prepared = SPI_prepare(statement->text.sql, 0, NULL);
	}
	if (prepared == NULL)
		elog(ERROR, "could not prepare a statement of a projection: %s",
			 SPI_result_code_string(SPI_result));

	if (apply->nplans >= MAX_PLANS)
		forget_plan(apply, dlist_tail_element(ApplyPlan, node, &apply->plans));
	old = MemoryContextSwitchTo(GetMemoryChunkContext(statement));
	plan = palloc0(sizeof(ApplyPlan));
	plan->statement = statement;
	plan->shapes = shapes_now(run, statement);
	SPI_keepplan(prepared);
	plan->plan = prepared;
	statement->plans = lappend(statement->plans, plan);
	MemoryContextSwitchTo(old);
	dlist_push_head(&apply->plans, &plan->node);
	apply->nplans++;
	return prepared;
}

/* ------------------------------------------------------- statements */

/* Rows of a statement that did not run: none, but later ones may name them. */
static void
capture_none(ApplyRun *run, ApplyStatement *statement)
{
	SPIPlanPtr	plan = statement->plans == NIL ? plan_of(run, statement) :
		((ApplyPlan *) linitial(statement->plans))->plan;
	CachedPlanSource *source = llast(SPI_plan_get_plan_sources(plan));
	Capture		capture;

	capture_begin(&capture, run);
	if (source->resultDesc == NULL)
		elog(ERROR, "a statement without result is to be captured as \"%s\"",
			 statement->text.capture);
	capture_startup(&capture.pub, 0, source->resultDesc);
	name_rows(run, statement->text.capture, capture.desc, capture.store, 0, true);
}

static void
run_statement(ApplyRun *run, ApplyStatement *statement)
{
	const SagaStatement *text = &statement->text;
	SPIExecuteOptions options;
	Capture		capture;
	SPIPlanPtr	plan;
	int			rc;

	CHECK_FOR_INTERRUPTS();
	if (text->unless_empty != NULL && !has_rows(run, text->unless_empty))
	{
		if (text->capture != NULL)
			capture_none(run, statement);
		return;
	}

	elog(DEBUG2, "upkeep: %s", text->sql);
	plan = plan_of(run, statement);
	memset(&options, 0, sizeof(options));
	if (text->capture != NULL)
	{
		capture_begin(&capture, run);
		options.must_return_tuples = true;
		options.dest = &capture.pub;
	}
	rc = SPI_execute_plan_extended(plan, &options);
	if (rc < 0)
		elog(ERROR, "could not run a statement of a projection: %s",
			 SPI_result_code_string(rc));
	run->result->statements++;
	if (text->capture != NULL)
		name_rows(run, text->capture, capture.desc, capture.store, capture.rows,
				  true);
	else if (SPI_tuptable != NULL)
		SPI_freetuptable(SPI_tuptable);
}

/* ----------------------------------------------------------- stages */

static char *
copy_text(const char *text)
{
	return text != NULL ? pstrdup(text) : NULL;
}

static ApplyList *
list_of(SagaApply *apply, SagaStage *stage, ApplyMode mode, Bitmapset *sources,
		Bitmapset *stages)
{
	ApplyList  *list;
	MemoryContext context;
	MemoryContext old;
	dlist_iter	iter;
	ListCell   *lc;
	List	   *texts = NIL;

	dlist_foreach(iter, &apply->lists)
	{
		list = dlist_container(ApplyList, node, iter.cur);
		if (list->stage == stage && list->mode == mode &&
			bms_equal(list->sources, sources) && bms_equal(list->stages, stages))
		{
			dlist_move_head(&apply->lists, &list->node);
			return list;
		}
	}

	switch (mode)
	{
		case APPLY_MAINTAIN:
			texts = saga_stage_maintain(apply->program, stage, sources, stages);
			break;
		case APPLY_FILL:
			texts = saga_stage_fill(apply->program, stage);
			break;
		case APPLY_DIFF:
			texts = saga_stage_diff(apply->program, stage);
			break;
	}

	if (apply->nlists >= MAX_LISTS)
		forget_list(apply, dlist_tail_element(ApplyList, node, &apply->lists));
	context = AllocSetContextCreate(apply->context, "saga apply statements",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	list = palloc0(sizeof(ApplyList));
	list->context = context;
	list->stage = stage;
	list->mode = mode;
	list->sources = bms_copy(sources);
	list->stages = bms_copy(stages);
	foreach(lc, texts)
	{
		const SagaStatement *text = lfirst(lc);
		ApplyStatement *statement = palloc0(sizeof(ApplyStatement));

		statement->text.sql = pstrdup(text->sql);
		statement->text.capture = copy_text(text->capture);
		statement->text.unless_empty = copy_text(text->unless_empty);
		list->statements = lappend(list->statements, statement);
	}
	dlist_push_head(&apply->lists, &list->node);
	apply->nlists++;
	MemoryContextSwitchTo(old);
	return list;
}

/* Returns whether later stages must know. */
static bool
run_stage(ApplyRun *run, SagaStage *stage, ApplyMode mode, Bitmapset *sources,
		  Bitmapset *stages)
{
	ApplyList  *list = list_of(run->apply, stage, mode, sources, stages);
	ListCell   *lc;

	foreach(lc, list->statements)
		run_statement(run, lfirst(lc));
	if (mode == APPLY_FILL || !stage->feeds)
		return false;
	if (find_rows(run, stage->delta) == NULL)
		elog(ERROR, "stage %d did not say what changed in it", stage->number);
	return has_rows(run, stage->delta);
}

static void
run_changed_stages(ApplyRun *run, Bitmapset *changed_sources,
				   Bitmapset *recompute)
{
	Bitmapset  *changed_stages = NULL;
	ListCell   *lc;

	foreach(lc, run->apply->program->stages)
	{
		SagaStage  *stage = lfirst(lc);
		Bitmapset  *sources = bms_intersect(stage->sources, changed_sources);
		Bitmapset  *stages = bms_intersect(stage->stages, changed_stages);
		bool		changed;

		if (bms_overlap(stage->sources, recompute))
			changed = run_stage(run, stage, APPLY_DIFF, NULL, NULL);
		else if (!bms_is_empty(sources) || !bms_is_empty(stages))
			changed = run_stage(run, stage, APPLY_MAINTAIN, sources, stages);
		else
			changed = false;
		if (changed)
			changed_stages = bms_add_member(changed_stages, stage->number);
	}
}

static void
run_all_stages(ApplyRun *run, ApplyMode mode)
{
	ListCell   *lc;

	foreach(lc, run->apply->program->stages)
		(void) run_stage(run, lfirst(lc), mode, NULL, NULL);
}

/* -------------------------------------------------------------- runs */

/* Names the deltas; returns the sources that really changed. */
static Bitmapset *
name_deltas(ApplyRun *run, List *deltas, Bitmapset *recompute)
{
	Bitmapset  *changed = NULL;
	int			number = 0;
	ListCell   *lc;

	foreach(lc, run->apply->program->sources)
	{
		SagaSource *source = lfirst(lc);
		ListCell   *ld;

		foreach(ld, deltas)
		{
			SagaDelta  *delta = lfirst(ld);

			if (delta->relid != source->relid || delta->rows == 0 ||
				bms_is_member(number, recompute))
				continue;
			name_rows(run, source->delta, delta->desc, delta->store,
					  delta->rows, false);
			run->result->rows_in += delta->rows;
			changed = bms_add_member(changed, number);
		}
		number++;
	}
	return changed;
}

/*
 * Rows written to storage by this subtransaction, as statistics have counted
 * them: a statement does not say what its WITH clauses wrote.
 */
static int64
rows_written(SagaProgram *program)
{
	int64		count = 0;
	ListCell   *lc;

	foreach(lc, program->stages)
	{
		SagaStage  *stage = lfirst(lc);
		List	   *name = stringToQualifiedNameList(stage->storage);
		Oid			relid = RangeVarGetRelid(makeRangeVarFromNameList(name),
											 NoLock, true);
		Relation	rel = OidIsValid(relid) ?
			try_relation_open(relid, AccessShareLock) : NULL;

		if (rel == NULL)
			continue;
		if (rel->pgstat_info != NULL && rel->pgstat_info->trans != NULL &&
			rel->pgstat_info->trans->nest_level == GetCurrentTransactionNestLevel())
			count += rel->pgstat_info->trans->tuples_inserted +
				rel->pgstat_info->trans->tuples_updated +
				rel->pgstat_info->trans->tuples_deleted;
		relation_close(rel, AccessShareLock);
	}
	return count;
}

static void
run_program(SagaApply *apply, ApplyMode mode, List *deltas,
			Bitmapset *recompute, SagaApplyResult *result)
{
	ApplyRun	run;
	SagaUserSwitch saved;
	MemoryContext old;
	RepOriginId origin = replorigin_session_origin;

	memset(result, 0, sizeof(*result));
	if (!IsolationUsesXactSnapshot())
		elog(ERROR, "projections are kept in REPEATABLE READ transactions");

	memset(&run, 0, sizeof(run));
	run.apply = apply;
	run.result = result;
	run.context = AllocSetContextCreate(CurrentMemoryContext, "saga apply run",
										ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(run.context);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	saga_run_as_begin(apply->owner, "pg_catalog", &saved);
	result->rows_out = -rows_written(apply->program);

	PG_TRY();
	{
		replorigin_session_origin = DoNotReplicateId;
		if (mode == APPLY_MAINTAIN)
			run_changed_stages(&run, name_deltas(&run, deltas, recompute),
							   recompute);
		else
			run_all_stages(&run, mode);
	}
	PG_FINALLY();
	{
		replorigin_session_origin = origin;
	}
	PG_END_TRY();

	result->rows_out += rows_written(apply->program);
	while (run.rows != NIL)
		forget_rows(&run, linitial(run.rows));
	saga_run_as_end(&saved);
	SPI_finish();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(run.context);
}

void
saga_apply_deltas(SagaApply *apply, List *deltas, Bitmapset *recompute,
				  SagaApplyResult *result)
{
	run_program(apply, APPLY_MAINTAIN, deltas, recompute, result);
}

void
saga_apply_fill(SagaApply *apply, SagaApplyResult *result)
{
	run_program(apply, APPLY_FILL, NIL, NULL, result);
}

void
saga_apply_diff(SagaApply *apply, SagaApplyResult *result)
{
	run_program(apply, APPLY_DIFF, NIL, NULL, result);
}

/* ------------------------------------------------------------- check */

static char *
check_statement(SagaProgram *program)
{
	StringInfoData names;
	StringInfoData columns;
	char	   *sql;

	initStringInfo(&names);
	initStringInfo(&columns);
	for (int i = 0; i < program->result->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(program->result, i);
		TypeCacheEntry *type = lookup_type_cache(att->atttypid, TYPECACHE_LT_OPR |
												 TYPECACHE_HASH_PROC);
		bool		comparable = OidIsValid(type->lt_opr) ||
			OidIsValid(type->hash_proc);

		/* json, points and the like: by their text */
		appendStringInfo(&names, "%sc%d", i > 0 ? ", " : "", i);
		appendStringInfo(&columns, "%sc%d%s", i > 0 ? ", " : "", i,
						 comparable ? "" : "::pg_catalog.text");
	}
	sql = psprintf("WITH live (%s) AS MATERIALIZED (%s), stored (%s) AS MATERIALIZED (%s)"
				   " SELECT (SELECT count(*) FROM (SELECT %s FROM live EXCEPT ALL SELECT %s FROM stored) m),"
				   " (SELECT count(*) FROM (SELECT %s FROM stored EXCEPT ALL SELECT %s FROM live) e)",
				   names.data, program->live_query,
				   names.data, program->stored_query,
				   columns.data, columns.data, columns.data, columns.data);
	pfree(names.data);
	pfree(columns.data);
	return sql;
}

void
saga_apply_check(SagaApply *apply, int64 *missing, int64 *extra)
{
	SagaUserSwitch saved;
	bool		isnull;

	/* what this transaction wrote counts, what others did since does not */
	PushCopiedSnapshot(GetActiveSnapshot());
	UpdateActiveSnapshotCommandId();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	saga_run_as_begin(apply->owner, "pg_catalog", &saved);
	if (apply->check == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(apply->context);

		apply->check = check_statement(apply->program);
		MemoryContextSwitchTo(old);
	}
	if (SPI_execute(apply->check, true, 0) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not compare a projection with its query");
	*missing = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1, &isnull));
	*extra = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 2, &isnull));
	saga_run_as_end(&saved);
	SPI_finish();
	PopActiveSnapshot();
}
