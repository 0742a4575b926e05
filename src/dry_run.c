/*
 * dry_run.c
 *		saga.dry_run(): what a definition would do, and what its undo would
 *		leave behind.
 *
 * Sessions only.  Local actions run for certain, in a subtransaction that is
 * rolled back; nobody is called.  Before the pivot (or the completion) all
 * that was done is undone on trial, and the rows that are then not as before
 * are shown; that too is rolled back, and the saga goes on.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "define.h"
#include "row_diff.h"
#include "session_run.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(saga_dry_run);

enum
{
	DRY_PHASE, DRY_STEP, DRY_OPERATION, DRY_SENT, DRY_RESULT, DRY_ERROR,
	DRY_RELATION, DRY_KEY, DRY_BEFORE, DRY_AFTER, DRY_COLUMNS
};

typedef struct DryRun
{
	SagaSessionRun run;
	ReturnSetInfo *rsinfo;
	Jsonb	   *stubs;			/* by step; or NULL */
	Snapshot	before;
	const char *phase;
} DryRun;

static void
set_text(Datum *v, bool *n, int column, const char *text)
{
	n[column] = text == NULL;
	v[column] = text ? CStringGetTextDatum(text) : (Datum) 0;
}

static void
set_json(Datum *v, bool *n, int column, const Jsonb *value)
{
	n[column] = value == NULL;
	v[column] = PointerGetDatum(value);
}

static void
put_row(DryRun *dry, Datum *v, bool *n)
{
	tuplestore_putvalues(dry->rsinfo->setResult, dry->rsinfo->setDesc, v, n);
}

/* The stub of a step: of this very run of it, or of its node. */
static JsonbValue *
stub_of(DryRun *dry, int32 step)
{
	const char *name = saga_session_step_name(&dry->run, step);
	const char *node = dry->run.def->graph->nodes[dry->run.state->steps[step].node].name;
	JsonbValue *v = NULL;

	if (dry->stubs == NULL)
		return NULL;
	v = getKeyJsonValueFromContainer(&dry->stubs->root, name, strlen(name), NULL);
	return v ? v : getKeyJsonValueFromContainer(&dry->stubs->root, node, strlen(node), NULL);
}

/* Remote calls are answered by stubs; {"$error": text} is no result. */
static bool
answer_call(SagaSessionRun *run, const SagaCommand *c, const SagaCall *call,
			SagaSessionAnswer *answer)
{
	DryRun	   *dry = run->arg;
	JsonbValue *stub = stub_of(dry, c->node);
	bool		local = call->server == NULL && call->kind == SAGA_CALL_SQL;

	if (local && (stub == NULL || c->op == SAGA_OP_UNDO))
		return false;
	answer->kind = SAGA_ANSWER_DONE;
	if (c->op == SAGA_OP_UNDO)
		return true;
	if (stub == NULL)
	{
		answer->message = pstrdup("no stub: the result is null");
		return true;
	}
	if (stub->type == jbvBinary && JsonContainerIsObject(stub->val.binary.data))
	{
		char	   *error = saga_json_text(stub->val.binary.data, "$error");

		if (error)
		{
			saga_session_error(error, call, answer);
			return true;
		}
	}
	answer->result = stub->type == jbvNull ? NULL : JsonbValueToJsonb(stub);
	return true;
}

static bool
give_signal(SagaSessionRun *run, int32 step, Jsonb **payload)
{
	JsonbValue *stub = stub_of(run->arg, step);

	*payload = stub && stub->type != jbvNull ? JsonbValueToJsonb(stub) : NULL;
	return true;
}

static void
show_call(SagaSessionRun *run, const SagaCommand *c, const SagaCall *call,
		  Jsonb *sent, const SagaSessionAnswer *answer)
{
	DryRun	   *dry = run->arg;
	Datum		v[DRY_COLUMNS];
	bool		n[DRY_COLUMNS];

	memset(n, true, sizeof(n));
	set_text(v, n, DRY_PHASE, c->node == SAGA_NODE_END ? "end" :
			 run->state->direction == SAGA_UNDO ? "undo" : dry->phase);
	set_text(v, n, DRY_STEP, saga_session_step_name(run, c->node));
	set_text(v, n, DRY_OPERATION, saga_op_name(c->op));
	set_json(v, n, DRY_SENT, sent);
	if (c->op == SAGA_OP_EVAL && answer->kind == SAGA_ANSWER_DONE && answer->result == NULL)
		set_json(v, n, DRY_RESULT,
				 DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(
					 c->eval == SAGA_EVAL_CASES ? psprintf(INT64_FORMAT, answer->value) :
					 c->eval == SAGA_EVAL_TIME ? psprintf("\"%s\"", timestamptz_to_str(answer->value)) :
					 answer->value ? "true" : "false"))));
	else
		set_json(v, n, DRY_RESULT, answer->result);
	if (answer->kind == SAGA_ANSWER_DONE)
		set_text(v, n, DRY_ERROR, answer->message);
	else
		set_text(v, n, DRY_ERROR, psprintf("%s: %s", answer->sqlstate,
											   answer->message ? answer->message : ""));
	put_row(dry, v, n);
}

static void
show_change(void *arg, const SagaRowChange *change)
{
	DryRun	   *dry = arg;
	Datum		v[DRY_COLUMNS];
	bool		n[DRY_COLUMNS];

	memset(n, true, sizeof(n));
	set_text(v, n, DRY_PHASE, "not restored");
	set_text(v, n, DRY_ERROR, change->note);
	v[DRY_RELATION] = ObjectIdGetDatum(change->relid);
	n[DRY_RELATION] = false;
	set_json(v, n, DRY_KEY, change->key);
	set_json(v, n, DRY_BEFORE, change->before);
	set_json(v, n, DRY_AFTER, change->after);
	put_row(dry, v, n);
}

static void
undo_and_compare(void *arg)
{
	DryRun	   *dry = arg;

	dry->phase = "undo";
	saga_session_undo(&dry->run);
	saga_row_diff(dry->before, dry->run.def->owner, show_change, dry);
}

static void
rethrow(ErrorData *error)
{
	if (error)
		ReThrowError(error);
}

static void
try_undo(SagaSessionRun *run)
{
	DryRun	   *dry = run->arg;

	if (run->state->direction == SAGA_UNDO)
	{
		/* it came back by itself */
		saga_row_diff(dry->before, run->def->owner, show_change, dry);
		return;
	}
	rethrow(saga_try(undo_and_compare, dry));
	dry->phase = "forward";
}

static void
run_dry(void *arg)
{
	DryRun	   *dry = arg;
	Datum		v[DRY_COLUMNS];
	bool		n[DRY_COLUMNS];

	dry->before = RegisterSnapshot(GetTransactionSnapshot());
	saga_session_run(&dry->run);
	if (!SAGA_STATE_ENDED(dry->run.state->state))
	{
		if (!dry->run.turned[dry->run.state->direction])
			try_undo(&dry->run);
		memset(n, true, sizeof(n));
		set_text(v, n, DRY_PHASE, "end");
		set_text(v, n, DRY_ERROR, psprintf("the saga does not end: it is %s",
										   saga_state_name(dry->run.state->state)));
		put_row(dry, v, n);
	}
	UnregisterSnapshot(dry->before);
}

/* saga.dry_run(definition text, input jsonb, stubs jsonb) -> setof record */
Datum
saga_dry_run(PG_FUNCTION_ARGS)
{
	static const SagaSessionDriver driver = {
		.answer = answer_call,
		.signal = give_signal,
		.called = show_call,
		.turning = try_undo,
	};
	DryRun		dry;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the definition must not be null")));
	InitMaterializedSRF(fcinfo, 0);
	memset(&dry, 0, sizeof(dry));
	dry.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	dry.phase = "forward";
	dry.stubs = PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2);
	if (dry.stubs && !JB_ROOT_IS_OBJECT(dry.stubs))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("stubs must be a JSON object: results by step")));
	dry.run.def = saga_session_definition(text_to_cstring(PG_GETARG_TEXT_PP(0)), true);
	dry.run.input = saga_definition_check_input(dry.run.def,
												PG_ARGISNULL(1) ? NULL : PG_GETARG_JSONB_P(1));
	dry.run.driver = &driver;
	dry.run.arg = &dry;
	dry.run.now = GetCurrentTimestamp();
	dry.run.until = SAGA_NEVER - 1;
	rethrow(saga_try(run_dry, &dry));
	return (Datum) 0;
}
