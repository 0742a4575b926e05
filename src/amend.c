/*
 * amend.c
 *		What an operator changes in a live saga (see amend.h).
 *
 * Called by inbox.c and payloads.c in coordinators; the check of options by
 * operate.c in sessions.  Both changes are records of the saga's log, and
 * hold from there on.
 */
#include "postgres.h"

#include <math.h>

#include "utils/memutils.h"

#include "amend.h"
#include "compat.h"
#include "coordinator.h"
#include "define.h"
#include "refold.h"

/* ------------------------------------------------------ options of steps */

/* What set_step_options() can change; all numbers, times in seconds. */
static const char *const retry_options[] = {
	"max_attempts", "initial_interval", "backoff", "max_interval", "jitter", NULL
};

struct SagaAmends
{
	SagaGraph  *graph;			/* a copy of the definition's, of which the
								 * nodes differ */
	int		   *timeout_ms;		/* by node, 0: the call's own */
	int		   *undo_timeout_ms;
};

static void pg_attribute_noreturn()
bad_option(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("these options of a step cannot be set: %s", what),
			 errhint("Set timeout, retry, compensation_timeout and compensation_retry, the latter with max_attempts, initial_interval, backoff, max_interval and jitter only.")));
}

static void
check_retry(const char *name, Jsonb *options)
{
	JsonbContainer *policy = saga_json_container(&options->root, name);
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;
	bool		known = true;

	if (policy == NULL)
		return;
	it = JsonbIteratorInit(policy);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			known = false;
			for (int i = 0; retry_options[i]; i++)
				known |= v.val.string.len == (int) strlen(retry_options[i]) &&
					strncmp(v.val.string.val, retry_options[i], v.val.string.len) == 0;
			if (!known)
				bad_option(psprintf("%s: %.*s", name, v.val.string.len, v.val.string.val));
		}
		else if (token == WJB_VALUE && v.type != jbvNumeric)
			bad_option(name);
	}
	if (saga_json_number(policy, "max_attempts", 0) < 0 ||
		saga_json_number(policy, "initial_interval", 0) < 0 ||
		saga_json_number(policy, "max_interval", 0) < 0 ||
		saga_json_number(policy, "backoff", 1) < 1 ||
		saga_json_number(policy, "jitter", 0) < 0 ||
		saga_json_number(policy, "jitter", 0) > 1)
		bad_option(psprintf("a value of %s is out of range", name));
}

void
saga_amend_check_options(Jsonb *options)
{
	if (options == NULL || !JB_ROOT_IS_OBJECT(options) || JB_ROOT_COUNT(options) == 0)
		bad_option("none is given");
	check_retry("retry", options);
	check_retry("compensation_retry", options);
	if (saga_json_number(&options->root, "timeout", 1) <= 0 ||
		saga_json_number(&options->root, "compensation_timeout", 1) <= 0)
		bad_option("a time-out must be longer than nothing");
}

static struct SagaAmends *
amends_of(SagaRun *run)
{
	const SagaGraph *graph = run->def->graph;
	MemoryContext old;

	if (run->amends)
		return run->amends;
	old = MemoryContextSwitchTo(run->context);
	run->amends = palloc0(sizeof(struct SagaAmends));
	run->amends->timeout_ms = palloc0(sizeof(int) * Max(graph->nnodes, 1));
	run->amends->undo_timeout_ms = palloc0(sizeof(int) * Max(graph->nnodes, 1));
	run->amends->graph = palloc(sizeof(SagaGraph));
	*run->amends->graph = *graph;
	run->amends->graph->nodes = palloc(sizeof(SagaNode) * Max(graph->nnodes, 1));
	memcpy(run->amends->graph->nodes, graph->nodes, sizeof(SagaNode) * graph->nnodes);
	MemoryContextSwitchTo(old);
	run->state->graph = run->amends->graph;
	return run->amends;
}

static SagaTime
seconds_of(JsonbContainer *object, const char *name, SagaTime otherwise)
{
	double		seconds = saga_json_number(object, name, -1);

	return seconds < 0 ? otherwise : (SagaTime) rint(Min(seconds, 1e9) * SAGA_SECOND);
}

/* What is not given stays. */
static void
set_retry(SagaRetry *retry, JsonbContainer *policy)
{
	if (policy == NULL)
		return;
	retry->max_attempts = (int32) saga_json_number(policy, "max_attempts", retry->max_attempts);
	retry->initial_interval = seconds_of(policy, "initial_interval", retry->initial_interval);
	retry->max_interval = seconds_of(policy, "max_interval", retry->max_interval);
	retry->backoff = saga_json_number(policy, "backoff", retry->backoff);
	retry->jitter = saga_json_number(policy, "jitter", retry->jitter);
}

/* Of all runs of the step's node. */
void
saga_amend_apply_options(SagaRun *run, int step, const Jsonb *options)
{
	JsonbContainer *root = unconstify(JsonbContainer *, &options->root);
	struct SagaAmends *amends = amends_of(run);
	int			node = saga_node_of(run, step);

	set_retry(&amends->graph->nodes[node].retry, saga_json_container(root, "retry"));
	set_retry(&amends->graph->nodes[node].undo_retry, saga_json_container(root, "compensation_retry"));
	amends->timeout_ms[node] = (int) (seconds_of(root, "timeout",
												 amends->timeout_ms[node] * (SAGA_SECOND / 1000)) / (SAGA_SECOND / 1000));
	amends->undo_timeout_ms[node] = (int) (seconds_of(root, "compensation_timeout",
													  amends->undo_timeout_ms[node] * (SAGA_SECOND / 1000)) / (SAGA_SECOND / 1000));
}

int
saga_amend_timeout(const SagaRun *run, int step, bool undo, int timeout_ms)
{
	int			own = 0;

	if (run->amends && step >= 0)
		own = undo ? run->amends->undo_timeout_ms[saga_node_of(run, step)] :
			run->amends->timeout_ms[saga_node_of(run, step)];
	return own > 0 ? own : timeout_ms;
}

static SagaPayload *
signed_payload(const char *actor, const char *note)
{
	SagaPayload *payload = MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));

	payload->actor = actor ? MemoryContextStrdup(saga_turn_context, actor) : NULL;
	payload->note = note ? MemoryContextStrdup(saga_turn_context, note) : NULL;
	return payload;
}

void
saga_amend_set_options(SagaRun *run, const char *step, const Jsonb *options,
					   const char *actor, const char *note)
{
	int			number = saga_step_of_name(run, step);
	SagaPayload *payload = signed_payload(actor, note);

	if (number < 0 || options == NULL || SAGA_STATE_ENDED(run->state->state))
		return;
	payload->result = MemoryContextAlloc(saga_turn_context, VARSIZE(options));
	memcpy(payload->result, options, VARSIZE(options));
	saga_run_note(run, SAGA_RECORD_OPTIONS, number, payload);
}

/* ---------------------------------------------------------- other version */

/* The log as it will stand when this turn is written. */
static List *
whole_log(const SagaRun *run)
{
	List	   *entries = saga_log_read(&run->row.id);

	for (int i = 0; i < saga_turn.nentries; i++)
		if (memcmp(&saga_turn.entries[i].saga_id, &run->row.id, UUID_LEN) == 0)
		{
			SagaLogEntry *copy = palloc(sizeof(SagaLogEntry));

			*copy = saga_turn.entries[i];
			entries = lappend(entries, copy);
		}
	return entries;
}

/*
 * The session has looked before; things may have moved since.  A change of
 * the definition that somebody else has locked is not waited for.
 */
bool
saga_amend_migrate(SagaRun *run, int64 definition_id, const char *actor, const char *note)
{
	SagaDefinition *to;
	SagaState  *state;
	char	   *why;
	SagaInstanceChange *change;

	if (SAGA_STATE_ENDED(run->state->state) || run->reload)
		return true;
	if (run->calls > 0 || !saga_machine_may_evict(run->state) ||
		!saga_definition_try_lock(definition_id))
		return false;
	to = saga_definition_by_id(definition_id);
	if (to == NULL || to == run->def || run->row.two_phase)
		return true;
	why = saga_refold(run->def, to, whole_log(run), &state);
	if (why)
	{
		ereport(LOG,
				(errmsg("a saga of \"%s\" does not go on with version %d: %s",
						to->name, to->version, why)));
		return true;
	}
	saga_run_note(run, SAGA_RECORD_MIGRATED, SAGA_NO_NODE, signed_payload(actor, note));
	change = saga_run_change(run);
	change->definition_id = definition_id;
	run->reload = true;
	return true;
}
