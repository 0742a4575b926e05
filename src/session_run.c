/*
 * session_run.c
 *		A saga driven within one session (see session_run.h): for dry_run()
 *		and for tests that users write.
 *
 * Called by dry_run.c and test_run.c.  Writes no table of ours and calls
 * nobody: the caller rolls back what local actions did.  The clock is the
 * run's own and jumps from one due time to the next; SQL's now() is real.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "commands/trigger.h"
#include "datatype/timestamp.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "nodes/parsenodes.h"
#include "parser/parse_param.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "define.h"
#include "errors.h"
#include "guc.h"
#include "isolation.h"
#include "statement.h"
#include "rights.h"
#include "session_run.h"
#include "spi_util.h"
#include "start.h"

/* How definition_expr.c writes the end of a sleep that is an interval. */
#define RELATIVE_TIME \
	"SELECT pg_catalog.to_jsonb(extract(epoch FROM pg_catalog.now()"

typedef struct SagaSessionSignal
{
	int32		seq;			/* of its SIGNAL record */
	Jsonb	   *payload;
} SagaSessionSignal;

static void feed(SagaSessionRun *run, SagaEvent *event, const SagaSessionAnswer *answer);

static void *
arena_alloc(SagaArena *arena, size_t size)
{
	return MemoryContextAllocZero(arena->context, size);
}

const char *
saga_session_step_name(const SagaSessionRun *run, int32 step)
{
	static char buffer[1024];

	if (step == SAGA_NODE_END)
		return "$end";
	if (step == SAGA_NODE_ON_STUCK)
		return "$on_stuck";
	return saga_machine_step_name(run->state, step, buffer, sizeof(buffer));
}

SagaDefinition *
saga_session_definition(const char *name, bool owner)
{
	SagaDefinition *def;

	saga_require_privilege(name, "start");
	def = saga_definition_by_name(name, 0);
	if (def == NULL)
		saga_no_such_definition(name);
	if (owner && !saga_may_change(GetUserId(), def->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of saga definition \"%s\"", name)));
	if (!saga_allow_superuser_steps && superuser_arg(def->owner))
		for (int i = 0; i < def->graph->nnodes; i++)
			if ((def->action[i] && def->action[i]->server == NULL) ||
				(def->compensation[i] && def->compensation[i]->server == NULL))
				ereport(ERROR,
						(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						 errmsg("local actions do not run as a superuser"),
						 errdetail("The owner of saga \"%s\" is a superuser.", name),
						 errhint("Give the definition to an ordinary role with saga.alter_owner(), or set saga.allow_superuser_steps.")));
	return def;
}

void
saga_session_error(const char *text, const SagaCall *call, SagaSessionAnswer *answer)
{
	bool		code = strlen(text) >= 5 && (text[5] == '\0' || text[5] == ':');

	for (int i = 0; code && i < 5; i++)
		code = (text[i] >= '0' && text[i] <= '9') || (text[i] >= 'A' && text[i] <= 'Z');
	memset(answer, 0, sizeof(*answer));
	if (code)
	{
		strlcpy(answer->sqlstate, text, sizeof(answer->sqlstate));
		text += text[5] == ':' ? 6 : 5;
		while (*text == ' ')
			text++;
	}
	else
		strlcpy(answer->sqlstate, unpack_sql_state(ERRCODE_SAGA_DECLINED), sizeof(answer->sqlstate));
	answer->message = pstrdup(*text ? text : answer->sqlstate);
	answer->kind = saga_classify_sqlstate(answer->sqlstate, call);
}

/* --------------------------------------------------------- local calls */

static void
answer_from_error(SagaSessionRun *run, const SagaCall *call, ErrorData *error,
				  SagaSessionAnswer *answer)
{
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
		error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
		error->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
		ReThrowError(error);
	strlcpy(answer->sqlstate, unpack_sql_state(error->sqlerrcode), sizeof(answer->sqlstate));
	answer->message = error->detail ?
		psprintf("%s (%s)", error->message, error->detail) : error->message;
	answer->kind = saga_classify_sqlstate(answer->sqlstate, call);
}

static void
run_local(SagaSessionRun *run, const SagaCommand *c, const SagaCall *call,
		  char **values, SagaSessionAnswer *answer)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	SagaLocalAction action = {.saga_id = run->id,.step = c->node,.op = c->op,.alone = true};

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(run->context);
	PG_TRY();
	{
		SagaUserSwitch saved;

		PushActiveSnapshot(GetTransactionSnapshot());
		SPI_connect();
		saga_local_begin(&action);
		saga_run_as_begin(run->def->owner, run->def->search_path, &saved);
		answer->result = saga_statement_run(call, values, run->context);
		saga_run_as_end(&saved);
		saga_local_end();
		SPI_finish();
		CommandCounterIncrement();
		run->took |= action.took;
		if (c->op == SAGA_OP_UNDO && run->took)
			saga_isolation_undone(&run->id, c->node);
		PopActiveSnapshot();
		ReleaseCurrentSubTransaction();
		answer->kind = SAGA_ANSWER_DONE;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(run->context);
		error = CopyErrorData();
		FlushErrorState();
		saga_local_reset();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(run->context);
		CurrentResourceOwner = owner;
		answer_from_error(run, call, error, answer);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
}

/* --------------------------------------------------------- the calls */

static void
values_of(SagaSessionRun *run, const SagaCommand *c, SagaValues *v)
{
	memset(v, 0, sizeof(*v));
	v->saga_id = run->id;
	v->saga_name = run->def->name;
	v->step_name = pstrdup(saga_session_step_name(run, c->node));
	v->attempt = c->attempt;
	v->op = c->op;
	v->started_by = GetUserNameFromId(GetUserId(), false);
	v->started_at = run->started_at;
	v->deadline = run->state->deadline == SAGA_NEVER ? DT_NOEND : run->state->deadline;
	v->cause = run->state->cause == SAGA_CAUSE_NONE ? NULL : saga_cause_name(run->state->cause);
	v->input = run->input;
	v->node = c->node;
	v->results = run->results;
	v->items = run->items;
	v->callback_token = "test";
	v->state = run->state;
}

static const SagaCall *
call_of(const SagaSessionRun *run, const SagaCommand *c)
{
	const SagaDefinition *def = run->def;
	int32		node;

	if (c->node == SAGA_NODE_ON_STUCK)
		return def->on_stuck;
	if (c->node == SAGA_NODE_END)
		return run->state->direction == SAGA_FORWARD ? def->on_completed : def->on_compensated;
	node = run->state->steps[c->node].node;
	if (c->op == SAGA_OP_EVAL)
		return saga_definition_eval(def, node, (SagaEval) c->eval);
	return c->op == SAGA_OP_UNDO ? def->compensation[node] : def->action[node];
}

static bool
number_of(const Jsonb *value, double *number)
{
	JsonbValue	v;

	if (value == NULL || !JB_ROOT_IS_SCALAR(value) ||
		!JsonbExtractScalar(unconstify(JsonbContainer *, &value->root), &v) ||
		v.type != jbvNumeric)
		return false;
	*number = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
												 NumericGetDatum(v.val.numeric)));
	return true;
}

static bool
is_true(const Jsonb *value)
{
	JsonbValue	v;

	return value && JB_ROOT_IS_SCALAR(value) &&
		JsonbExtractScalar(unconstify(JsonbContainer *, &value->root), &v) &&
		v.type == jbvBool && v.val.boolean;
}

static void
refuse_value(SagaSessionAnswer *answer, int code, const char *message)
{
	answer->kind = SAGA_ANSWER_BROKEN;
	strlcpy(answer->sqlstate, unpack_sql_state(code), sizeof(answer->sqlstate));
	answer->message = pstrdup(message);
	answer->result = NULL;
}

/* What an expression's value is to the machine. */
static void
evaluate(SagaSessionRun *run, const SagaCommand *c, const SagaCall *call,
		 SagaSessionAnswer *answer)
{
	double		number;

	if (answer->kind != SAGA_ANSWER_DONE)
		return;
	switch ((SagaEval) c->eval)
	{
		case SAGA_EVAL_CONDITION:
		case SAGA_EVAL_WHILE:
			answer->value = is_true(answer->result);
			break;
		case SAGA_EVAL_CASES:
			answer->value = number_of(answer->result, &number) ? (int64) number : -1;
			break;
		case SAGA_EVAL_ITEMS:
			if (answer->result == NULL)
				answer->result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("[]")));
			if (!JB_ROOT_IS_ARRAY(answer->result) || JB_ROOT_IS_SCALAR(answer->result))
				refuse_value(answer, ERRCODE_INVALID_PARAMETER_VALUE,
							 "for_each did not give a JSON array");
			else
				answer->value = JB_ROOT_COUNT(answer->result);
			break;
		case SAGA_EVAL_TIME:
			if (!number_of(answer->result, &number))
			{
				refuse_value(answer, ERRCODE_NULL_VALUE_NOT_ALLOWED,
							 "the time to sleep, or to sleep until, is null");
				break;
			}
			number -= (double) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY;
			answer->value = number > 8e12 ? SAGA_NEVER : number < -2e11 ? 0 :
				(SagaTime) rint(number * SAGA_SECOND);
			if (answer->value != SAGA_NEVER &&
				strncmp(call->tmpl->sql, RELATIVE_TIME, strlen(RELATIVE_TIME)) == 0)
				answer->value += run->skew;
			break;
	}
	if (c->eval != SAGA_EVAL_ITEMS)
		answer->result = NULL;
}

static bool
is_local(const SagaCommand *c, const SagaCall *call)
{
	return c->op == SAGA_OP_EVAL || c->node < 0 ||
		(call->server == NULL && call->kind == SAGA_CALL_SQL);
}

/* Data that mean no. */
static void
check_decline(SagaSessionRun *run, const SagaCommand *c, const SagaCall *call,
			  SagaSessionAnswer *answer)
{
	SagaValues	values;
	SagaSessionAnswer verdict = {0};
	char	  **texts;

	if (answer->kind != SAGA_ANSWER_DONE || c->op != SAGA_OP_ACTION || call->decline_if == NULL)
		return;
	values_of(run, c, &values);
	values.result = answer->result;
	texts = palloc0(sizeof(char *) * Max(call->decline_if->tmpl->nparams, 1));
	saga_template_bind(call->decline_if->tmpl, &values, texts);
	run_local(run, c, call->decline_if, texts, &verdict);
	if (verdict.kind == SAGA_ANSWER_DONE && !is_true(verdict.result))
		return;
	if (verdict.kind == SAGA_ANSWER_DONE)
		saga_session_error("decline_if is true", NULL, &verdict);
	*answer = verdict;
}

static void
make_call(SagaSessionRun *run, const SagaCommand *c, SagaSessionAnswer *answer)
{
	const SagaCall *call = call_of(run, c);
	const SagaSessionDriver *driver = run->driver;
	Jsonb	   *sent = NULL;
	char	  **texts = NULL;
	bool		local = call == NULL || is_local(c, call);

	memset(answer, 0, sizeof(*answer));
	answer->kind = SAGA_ANSWER_DONE;
	if (c->op == SAGA_OP_CLAIM)
	{
		answer->kind = SAGA_ANSWER_REFUSED; /* whoever did not answer did nothing */
		return;
	}
	if (call && call->tmpl)
	{
		SagaValues	values;

		values_of(run, c, &values);
		texts = palloc0(sizeof(char *) * Max(call->tmpl->nparams, 1));
		saga_template_bind(call->tmpl, &values, texts);
		if (!local)
			sent = saga_rendered(call, &values, texts);
	}
	if (c->op != SAGA_OP_EVAL && c->node >= 0 && driver->answer &&
		driver->answer(run, c, call, answer))
		check_decline(run, c, call, answer);
	else if (local && texts)
	{
		run_local(run, c, call, texts, answer);
		if (c->op == SAGA_OP_EVAL)
			evaluate(run, c, call, answer);
		else
			check_decline(run, c, call, answer);
	}
	if (driver->called && call)
		driver->called(run, c, call, sent, answer);
}

/* ---------------------------------------------------------- decisions */

static Jsonb *
each_results(const SagaSessionRun *run, int32 step)
{
	const SagaState *state = run->state;
	JsonbParseState *ps = NULL;
	int			n = (int) state->steps[step].value;

	pushJsonbValue(&ps, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < n; i++)
	{
		JsonbValue	v = {.type = jbvNull};

		for (int32 r = state->steps[step].first_run; r >= 0; r = state->runs[r].previous)
			if (state->runs[r].number == i)
			{
				Jsonb	   *result = run->results[state->runs[r].steps[0]];

				if (result && JB_ROOT_IS_SCALAR(result))
					JsonbExtractScalar(&result->root, &v);
				else if (result)
				{
					v.type = jbvBinary;
					v.val.binary.data = &result->root;
					v.val.binary.len = VARSIZE(result) - VARHDRSZ;
				}
			}
		pushJsonbValue(&ps, WJB_ELEM, &v);
	}
	return JsonbValueToJsonb(pushJsonbValue(&ps, WJB_END_ARRAY, NULL));
}

/* What the record means beyond the machine's state. */
static Jsonb *
remember(SagaSessionRun *run, const SagaRecord *r, const SagaSessionAnswer *answer)
{
	Jsonb	   *result = r->payload && answer ? answer->result : NULL;
	const SagaNode *node;
	ListCell   *lc;

	if (r->node < 0)
		return result;
	node = &run->state->graph->nodes[run->state->steps[r->node].node];
	switch (r->kind)
	{
		case SAGA_RECORD_DONE:
			if (r->op == SAGA_OP_UNDO)
				break;
			if (node->kind == SAGA_NODE_EACH)
				result = each_results(run, r->node);
			else if (node->kind == SAGA_NODE_SIGNAL)
				foreach(lc, run->signals)
				{
					SagaSessionSignal *s = lfirst(lc);

					if (s->seq == r->value)
						result = s->payload;
				}
			run->results[r->node] = result;
			break;
		case SAGA_RECORD_EXPANDED:
			run->items[r->node] = result;
			break;
		default:
			break;
	}
	return result;
}

static void
grow(SagaSessionRun *run)
{
	int			n = run->state->nsteps;

	if (n <= run->nresults)
		return;
	n = Max(n, run->nresults * 2);
	run->results = run->results ? repalloc(run->results, sizeof(Jsonb *) * n) : palloc(sizeof(Jsonb *) * n);
	run->items = run->items ? repalloc(run->items, sizeof(Jsonb *) * n) : palloc(sizeof(Jsonb *) * n);
	memset(run->results + run->nresults, 0, sizeof(Jsonb *) * (n - run->nresults));
	memset(run->items + run->nresults, 0, sizeof(Jsonb *) * (n - run->nresults));
	run->nresults = n;
}

static void
cancel_call(SagaSessionRun *run, const SagaCommand *which)
{
	ListCell   *lc;

	foreach(lc, run->pending)
	{
		SagaCommand *c = lfirst(lc);

		if (c->node == which->node && c->op == which->op)
		{
			run->pending = foreach_delete_current(run->pending, lc);
			break;
		}
	}
}

static void
feed(SagaSessionRun *run, SagaEvent *event, const SagaSessionAnswer *answer)
{
	SagaArena	arena = {.alloc = arena_alloc,.context = run->context};
	SagaDecision decision;

	memset(&decision, 0, sizeof(decision));
	decision.arena = &arena;
	event->random = 0.5;		/* no jitter: the same run each time */
	event->payload = answer;
	run->decisions++;
	saga_machine_decide(run->state, event, run->now, &decision);
	grow(run);
	for (int i = 0; i < decision.nrecords; i++)
	{
		const SagaRecord *r = &decision.records[i];
		SagaSessionAnswer shown;

		memset(&shown, 0, sizeof(shown));
		if (r->payload && answer)
			shown = *answer;
		if (r->kind == SAGA_RECORD_SIGNAL)
		{
			SagaSessionSignal *s = palloc(sizeof(SagaSessionSignal));

			s->seq = r->seq;
			s->payload = answer ? answer->result : NULL;
			run->signals = lappend(run->signals, s);
		}
		shown.result = remember(run, r, answer);
		if (run->driver->wrote)
			run->driver->wrote(run, r, &shown);
	}
	for (int i = 0; i < decision.ncommands; i++)
	{
		SagaCommand *c = palloc(sizeof(SagaCommand));

		*c = decision.commands[i];
		if (c->kind == SAGA_CMD_CALL)
			run->pending = lappend(run->pending, c);
		else if (c->kind == SAGA_CMD_CANCEL_CALL)
			cancel_call(run, c);
	}
}

static bool
is_pivot(const SagaSessionRun *run, const SagaCommand *c)
{
	return c->node >= 0 && c->op == SAGA_OP_ACTION &&
		run->state->graph->nodes[run->state->steps[c->node].node].pivot;
}

/* The first call that is out, the pivot's when there is no other. */
static SagaCommand *
next_call(SagaSessionRun *run)
{
	ListCell   *lc;
	SagaCommand *c = linitial(run->pending);

	foreach(lc, run->pending)
		if (!is_pivot(run, lfirst(lc)))
		{
			c = lfirst(lc);
			break;
		}
	run->pending = list_delete_ptr(run->pending, c);
	return c;
}

static void
answer_call(SagaSessionRun *run, const SagaCommand *c, SagaSessionAnswer *answer)
{
	SagaEvent	event;

	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_ANSWER;
	event.op = c->op;
	event.node = c->node;
	event.answer = answer->kind;
	event.value = answer->value;
	feed(run, &event, answer);
}

/* A signal for a step that waits for one; false: none comes. */
static bool
deliver_signal(SagaSessionRun *run)
{
	if (run->driver->signal == NULL)
		return false;
	for (int32 i = 0; i < run->state->nsteps; i++)
	{
		SagaSessionAnswer *answer;
		SagaEvent	event;
		Jsonb	   *payload = NULL;

		if (run->state->steps[i].status != SAGA_STEP_AWAITING ||
			!run->driver->signal(run, i, &payload))
			continue;
		answer = palloc0(sizeof(SagaSessionAnswer));
		answer->result = payload;
		memset(&event, 0, sizeof(event));
		event.kind = SAGA_EVENT_SIGNAL;
		event.node = SAGA_NO_NODE;
		event.value = run->state->graph->nodes[run->state->steps[i].node].signal;
		feed(run, &event, answer);
		return true;
	}
	return false;
}

static bool
is_turning(SagaSessionRun *run, const SagaCommand *c)
{
	return c->node == SAGA_NODE_END ||
		(is_pivot(run, c) && run->state->direction == SAGA_FORWARD);
}

static void
turn(SagaSessionRun *run)
{
	if (run->driver->turning == NULL || run->turned[run->state->direction])
		return;
	run->turned[run->state->direction] = true;
	run->driver->turning(run);
}

static bool
pass_time(SagaSessionRun *run)
{
	SagaTime	due = saga_machine_next_due(run->state);
	SagaEvent	event;

	if (due == SAGA_NEVER || due > run->until || run->state->state == SAGA_STUCK)
		return false;
	if (due > run->now)
	{
		run->skew += due - run->now;
		run->now = due;
	}
	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_TIMER;
	event.node = SAGA_NO_NODE;
	feed(run, &event, NULL);
	return true;
}

void
saga_session_run(SagaSessionRun *run)
{
	SagaArena	arena = {.alloc = arena_alloc};
	ConstraintsSetStmt *immediate = makeNode(ConstraintsSetStmt);
	SagaEvent	event;

	run->context = CurrentMemoryContext;
	arena.context = run->context;
	saga_new_id(&run->id);
	run->started_at = run->now;
	run->skew = run->now - GetCurrentTransactionStartTimestamp();
	run->state = saga_machine_create(run->def->graph,
									 run->def->deadline == SAGA_NEVER ? SAGA_NEVER :
									 run->now + run->def->deadline, &arena);
	grow(run);
	AfterTriggerSetState(immediate);	/* as in executors */

	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_START;
	event.node = SAGA_NO_NODE;
	feed(run, &event, NULL);
	while (run->decisions < SAGA_SESSION_DECISIONS && !SAGA_STATE_ENDED(run->state->state))
	{
		CHECK_FOR_INTERRUPTS();
		if (run->pending != NIL)
		{
			SagaCommand *c = next_call(run);
			SagaSessionAnswer *answer = palloc(sizeof(SagaSessionAnswer));

			if (is_turning(run, c))
				turn(run);
			make_call(run, c, answer);
			answer_call(run, c, answer);
		}
		else if (!deliver_signal(run) && !pass_time(run))
			break;
	}
	/* without an ending action nothing was called before the end */
	if (SAGA_STATE_ENDED(run->state->state))
		turn(run);
}

static int
newest_first(const ListCell *a, const ListCell *b)
{
	const SagaStep *x = lfirst(a);
	const SagaStep *y = lfirst(b);

	return y->done_at - x->done_at;
}

void
saga_session_undo(SagaSessionRun *run)
{
	List	   *steps = NIL;
	ListCell   *lc;

	for (int32 i = 0; i < run->state->nsteps; i++)
	{
		const SagaStep *step = &run->state->steps[i];

		if (step->status == SAGA_STEP_DONE && run->def->compensation[step->node])
			steps = lappend(steps, unconstify(SagaStep *, step));
	}
	list_sort(steps, newest_first);
	foreach(lc, steps)
	{
		SagaCommand c;
		SagaSessionAnswer answer;

		memset(&c, 0, sizeof(c));
		c.kind = SAGA_CMD_CALL;
		c.op = SAGA_OP_UNDO;
		c.node = (int32) ((SagaStep *) lfirst(lc) - run->state->steps);
		c.attempt = 1;
		make_call(run, &c, &answer);
	}
}
