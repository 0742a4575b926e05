/*
 * test_run.c
 *		Tests that users write of their definitions: answers are made up with
 *		test_mock(), time passes at once, and test_run() gives the log that the
 *		saga would have.
 *
 * Sessions only, and only where saga.allow_test is on.  Mocks are this
 * session's, in its memory.  Local actions run in a subtransaction that is
 * rolled back; nobody is called.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "define.h"
#include "guc.h"
#include "rights.h"
#include "session_run.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(saga_test_begin);
PG_FUNCTION_INFO_V1(saga_test_mock);
PG_FUNCTION_INFO_V1(saga_test_advance);
PG_FUNCTION_INFO_V1(saga_test_run);

/* One made-up answer. */
typedef struct Mock
{
	char	   *definition;
	char	   *step;
	bool		undo;
	Jsonb	   *result;
	char	   *error;			/* NULL: done */
} Mock;

/* A step of a run that has been answered by its mocks so often. */
typedef struct Used
{
	char	   *step;
	bool		undo;
	int			times;
} Used;

typedef struct TestRun
{
	SagaSessionRun run;
	ReturnSetInfo *rsinfo;
	List	   *used;
} TestRun;

static MemoryContext test_context;
static List *mocks;				/* in the order they were given */
static bool advanced;			/* test_advance() was called: */
static int64 advanced_us;		/* ... so much time passes, no more */

static void
require_test(void)
{
	if (!saga_allow_test)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("tests of sagas are not allowed here"),
				 errhint("A superuser can set saga.allow_test = on.")));
}

/* saga.test_begin() -> void */
Datum
saga_test_begin(PG_FUNCTION_ARGS)
{
	require_test();
	if (test_context)
		MemoryContextDelete(test_context);
	test_context = AllocSetContextCreate(TopMemoryContext, "saga test", ALLOCSET_SMALL_SIZES);
	mocks = NIL;
	advanced = false;
	advanced_us = 0;
	PG_RETURN_VOID();
}

static void
require_begun(void)
{
	require_test();
	if (test_context == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no test has begun in this session"),
				 errhint("Call saga.test_begin() first.")));
}

/*
 * saga.test_mock(definition text, step text, result jsonb, error text,
 * operation text) -> void
 */
Datum
saga_test_mock(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *step;
	char	   *operation;
	SagaDefinition *def;
	MemoryContext old;
	Mock	   *mock;

	require_begun();
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(4))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("definition, step and operation must not be null")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	step = text_to_cstring(PG_GETARG_TEXT_PP(1));
	operation = text_to_cstring(PG_GETARG_TEXT_PP(4));
	if (strcmp(operation, "action") != 0 && strcmp(operation, "compensation") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized operation: \"%s\"", operation),
				 errhint("Operations are action and compensation.")));
	saga_require_privilege(name, "start");
	def = saga_definition_by_name(name, 0);
	if (def == NULL)
		saga_no_such_definition(name);
	/* a run of a step may be meant: name[2], name~1 */
	if (saga_definition_node(def, pnstrdup(step, strcspn(step, "[~"))) == SAGA_NO_NODE)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("step \"%s\" of saga \"%s\" does not exist", step, name)));

	old = MemoryContextSwitchTo(test_context);
	mock = palloc0(sizeof(Mock));
	mock->definition = pstrdup(name);
	mock->step = pstrdup(step);
	mock->undo = operation[0] == 'c';
	mock->result = PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P_COPY(2);
	mock->error = PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3));
	mocks = lappend(mocks, mock);
	MemoryContextSwitchTo(old);
	PG_RETURN_VOID();
}

/* saga.test_advance(by interval) -> interval: all that may pass now */
Datum
saga_test_advance(PG_FUNCTION_ARGS)
{
	Datum		now = TimestampTzGetDatum(GetCurrentTimestamp());
	int64		us;
	Interval   *sum;

	require_begun();
	us = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval, now, PG_GETARG_DATUM(0))) -
		DatumGetTimestampTz(now);
	if (us < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("time does not go back")));
	advanced = true;
	advanced_us += us;
	sum = palloc0(sizeof(Interval));
	sum->time = advanced_us;
	PG_RETURN_DATUM(DirectFunctionCall1(interval_justify_hours, IntervalPGetDatum(sum)));
}

/* ------------------------------------------------------------- running */

static bool
is_of(const SagaSessionRun *run, const Mock *mock, int32 step, bool undo)
{
	const char *node = run->def->graph->nodes[run->state->steps[step].node].name;

	return mock->undo == undo && strcmp(mock->definition, run->def->name) == 0 &&
		(strcmp(mock->step, node) == 0 ||
		 strcmp(mock->step, saga_session_step_name(run, step)) == 0);
}

/* The nth answer of a step is its nth mock; the last one stays. */
static const Mock *
next_mock(TestRun *test, int32 step, bool undo)
{
	const char *name = saga_session_step_name(&test->run, step);
	const Mock *found = NULL;
	Used	   *used = NULL;
	int			n = 0;
	ListCell   *lc;

	foreach(lc, test->used)
	{
		Used	   *u = lfirst(lc);

		if (u->undo == undo && strcmp(u->step, name) == 0)
			used = u;
	}
	if (used == NULL)
	{
		used = palloc0(sizeof(Used));
		used->step = pstrdup(name);
		used->undo = undo;
		test->used = lappend(test->used, used);
	}
	foreach(lc, mocks)
		if (is_of(&test->run, lfirst(lc), step, undo))
		{
			found = lfirst(lc);
			if (n++ == used->times)
				break;
		}
	if (found)
		used->times++;
	return found;
}

static bool
answer_call(SagaSessionRun *run, const SagaCommand *c, const SagaCall *call,
			SagaSessionAnswer *answer)
{
	const Mock *mock = next_mock(run->arg, c->node, c->op == SAGA_OP_UNDO);

	if (mock == NULL && call->server == NULL && call->kind == SAGA_CALL_SQL)
		return false;
	answer->kind = SAGA_ANSWER_DONE;
	if (mock == NULL)
		answer->message = pstrdup("not mocked: the result is null");
	else if (mock->error)
		saga_session_error(mock->error, call, answer);
	else
		answer->result = mock->result;
	return true;
}

static bool
give_signal(SagaSessionRun *run, int32 step, Jsonb **payload)
{
	const Mock *mock = next_mock(run->arg, step, false);

	if (mock == NULL || mock->error)
		return false;			/* it does not come */
	*payload = mock->result;
	return true;
}

/* As log.c writes it. */
static Datum
column_of(const TestRun *test, const SagaRecord *r, const SagaSessionAnswer *answer,
		  const char *column, bool *isnull)
{
	bool		has_step = r->node != SAGA_NO_NODE;
	bool		answered = r->kind == SAGA_RECORD_FAILED || r->kind == SAGA_RECORD_HOOK;
	const char *text = NULL;

	*isnull = false;
	if (strcmp(column, "saga_id") == 0)
		return UUIDPGetDatum(&test->run.id);
	if (strcmp(column, "seq") == 0)
		return Int32GetDatum(r->seq);
	if (strcmp(column, "at") == 0)
		return TimestampTzGetDatum(test->run.now);
	if (strcmp(column, "due") == 0 && r->due != 0 && r->due != SAGA_NEVER)
		return TimestampTzGetDatum(r->due);
	if (strcmp(column, "attempt") == 0 && r->attempt != 0)
		return Int32GetDatum(r->attempt);
	if (strcmp(column, "value") == 0 &&
		(r->kind == SAGA_RECORD_CHOSEN || r->kind == SAGA_RECORD_EXPANDED ||
		 r->kind == SAGA_RECORD_ITERATION || r->value != 0))
		return Int64GetDatum(r->value);
	if (strcmp(column, "result") == 0 && answer->result)
		return PointerGetDatum(answer->result);
	if (strcmp(column, "kind") == 0)
		text = saga_record_name(r->kind);
	else if (strcmp(column, "step") == 0 && has_step)
		text = saga_session_step_name(&test->run, r->node);
	else if (strcmp(column, "operation") == 0 && has_step)
		text = saga_op_name(r->op);
	else if (strcmp(column, "outcome") == 0 && answered)
		text = saga_answer_name(r->answer);
	else if (strcmp(column, "state") == 0 && r->kind == SAGA_RECORD_ENDED)
		text = saga_state_name(r->state);
	else if (strcmp(column, "cause") == 0 && r->cause != SAGA_CAUSE_NONE)
		text = saga_cause_name(r->cause);
	else if (strcmp(column, "reason") == 0 && r->reason != SAGA_STUCK_NONE)
		text = saga_stuck_reason_name(r->reason);
	else if (strcmp(column, "sqlstate") == 0 && answer->sqlstate[0])
		text = answer->sqlstate;
	else if (strcmp(column, "message") == 0)
		text = answer->message;
	*isnull = text == NULL;
	return text ? CStringGetTextDatum(text) : (Datum) 0;
}

static void
show_record(SagaSessionRun *run, const SagaRecord *r, const SagaSessionAnswer *answer)
{
	TestRun    *test = run->arg;
	TupleDesc	desc = test->rsinfo->setDesc;
	Datum	   *v = palloc0(sizeof(Datum) * desc->natts);
	bool	   *n = palloc0(sizeof(bool) * desc->natts);

	for (int i = 0; i < desc->natts; i++)
		v[i] = column_of(test, r, answer, NameStr(TupleDescAttr(desc, i)->attname), &n[i]);
	tuplestore_putvalues(test->rsinfo->setResult, desc, v, n);
}

static void
run_test(void *arg)
{
	saga_session_run(arg);
}

/* saga.test_run(definition text, input jsonb) -> setof saga.log */
Datum
saga_test_run(PG_FUNCTION_ARGS)
{
	static const SagaSessionDriver driver = {
		.answer = answer_call,
		.signal = give_signal,
		.wrote = show_record,
	};
	TestRun		test;
	ErrorData  *error;

	require_begun();
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the definition must not be null")));
	InitMaterializedSRF(fcinfo, 0);
	memset(&test, 0, sizeof(test));
	test.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	test.run.def = saga_session_definition(text_to_cstring(PG_GETARG_TEXT_PP(0)), false);
	saga_require_privilege(test.run.def->name, "see");
	test.run.input = saga_definition_check_input(test.run.def,
												 PG_ARGISNULL(1) ? NULL : PG_GETARG_JSONB_P(1));
	test.run.driver = &driver;
	test.run.arg = &test;
	test.run.now = GetCurrentTimestamp();
	test.run.until = advanced ? test.run.now + advanced_us : SAGA_NEVER - 1;
	error = saga_try(run_test, &test.run);
	if (error)
		ReThrowError(error);
	return (Datum) 0;
}
