/*
 * two_phase.c
 *		Two-phase commit as a graph: what a definition may contain to be run
 *		by it, the graph it then becomes, and the names of its prepared
 *		transactions.
 *
 * Called by definition.c while it compiles (so nothing here may touch a
 * participant), and by all who need such a name.  The graph is an ordinary
 * one: that its nodes together are two-phase commit is known here, to the
 * connector's prepared-transaction modes and to the executor's parts.
 *
 * Why that is two-phase commit, with presumed abort:
 *
 * - "decide" waits for the vote of every branch, and its row in
 *   saga.local_outcome, committed together with the local steps, is the
 *   decision.  It is flushed before any COMMIT PREPARED goes out, because
 *   their intents come later in the WAL and are flushed before they are sent.
 * - Whatever fails before it turns the saga to undo, in which every branch
 *   that voted, or may have, is rolled back.  A coordinator that finds neither
 *   the row nor its record after a crash has not decided, and asks again.
 * - What follows the pivot is tried without end.
 */
#include "postgres.h"

#include <ctype.h>
#include <limits.h>

#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "compat.h"
#include "two_phase.h"

#define GID_PREFIX		"saga_"

/* Votes are retried a little only: others that have voted hold their locks. */
static const SagaRetry vote_retry = {
	.max_attempts = 5,
	.initial_interval = SAGA_SECOND / 2,
	.max_interval = 5 * SAGA_SECOND,
	.backoff = 2,
	.jitter = 0.2
};

/* What is prepared holds locks until it is ended: no long pauses. */
static const SagaRetry end_retry = {
	.max_attempts = 0,
	.initial_interval = SAGA_SECOND / 5,
	.max_interval = 5 * SAGA_SECOND,
	.backoff = 2,
	.jitter = 0.2
};

/* ---- names of prepared transactions ---- */

char *
saga_prepared_prefix(void)
{
	return psprintf(GID_PREFIX UINT64_FORMAT "_%u_", GetSystemIdentifier(),
					MyDatabaseId);
}

char *
saga_prepared_gid(const pg_uuid_t *saga_id, const char *label, int branch)
{
	char	   *id = DatumGetCString(DirectFunctionCall1(uuid_out,
														 UUIDPGetDatum(saga_id)));

	/* at most 5 + 20 + 10 + 36 + 63 + 4 bytes and 4 lines between: 142 */
	return psprintf("%s%s_%s_%d", saga_prepared_prefix(), id, label, branch);
}

bool
saga_prepared_saga(const char *gid, pg_uuid_t *saga_id)
{
	char	   *prefix = saga_prepared_prefix();
	size_t		len = strlen(prefix);
	char		id[37];

	if (strncmp(gid, prefix, len) != 0 || strlen(gid + len) < 38)
		return false;
	strlcpy(id, gid + len, sizeof(id));
	for (int i = 0; i < 36; i++)
	{
		bool		dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? id[i] != '-' : !isxdigit((unsigned char) id[i]))
			return false;
	}
	if (gid[len + 36] != '_')
		return false;
	*saga_id = *DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(id)));
	return true;
}

PG_FUNCTION_INFO_V1(saga_prepared_gid_sql);

/* prepared_gid_(saga, label, branch) */
Datum
saga_prepared_gid_sql(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(saga_prepared_gid(PG_GETARG_UUID_P(0),
													   text_to_cstring(PG_GETARG_TEXT_PP(1)),
													   PG_GETARG_INT32(2))));
}

/* ---- may it be run by two-phase commit? ---- */

static const char *
kind_problem(const SagaNode *node)
{
	switch (node->kind)
	{
		case SAGA_NODE_STEP:
		case SAGA_NODE_UNDO:
			break;
		case SAGA_NODE_SLEEP:
			return "two-phase commit cannot sleep: participants that have voted would hold their locks meanwhile";
		case SAGA_NODE_SIGNAL:
			return "two-phase commit cannot wait for a signal: participants that have voted would hold their locks meanwhile";
		case SAGA_NODE_BRANCH:
		case SAGA_NODE_EACH:
		case SAGA_NODE_LOOP:
		case SAGA_NODE_SAVEPOINT:
			return "two-phase commit knows no branches, loops and save-points: which transactions there are must be known before the first is begun";
	}
	if (node->has_condition)
		return "two-phase commit knows no conditions: which transactions there are must be known before the first is begun";
	if (node->scope != 0)
		return "two-phase commit knows no repeated steps: which transactions there are must be known before the first is begun";
	if (node->on_failure == SAGA_FAILURE_CONTINUE ||
		node->on_failure == SAGA_FAILURE_STUCK ||
		node->on_failure == SAGA_FAILURE_GOTO)
		return "under two-phase commit a step that fails ends the whole as not done: on_failure has no other meaning";
	return NULL;
}

static const char *
call_problem(const SagaCall *call)
{
	switch (call->kind)
	{
		case SAGA_CALL_SQL:
			break;
		case SAGA_CALL_HTTP:
			return "an HTTP service cannot take part in two-phase commit: it has no transaction to prepare";
		case SAGA_CALL_ASKED:		/* by a loop, which is refused already */
		case SAGA_CALL_CHILD:
			return "two-phase commit cannot call another saga, which has no transaction to prepare";
		case SAGA_CALL_QUEUE:
			return "two-phase commit cannot wait for somebody to take a step: participants that have voted would hold their locks meanwhile";
	}
	if (call->callback)
		return "two-phase commit cannot wait for a callback: participants that have voted would hold their locks meanwhile";
	if (call->decline_if)
		return "under two-phase commit a step is over when its statement is: decline_if comes too late";
	return NULL;
}

/* The first name in a text that two-phase commit cannot give a value. */
static void
check_names(SagaCompile *c, const char *step, bool remote, const char *part,
			const SagaTemplate *tmpl)
{
	const SagaDefinition *def = c->def;

	for (int i = 0; tmpl != NULL && i < tmpl->nparams; i++)
	{
		const SagaParam *param = &tmpl->params[i];
		const SagaCall *action;

		if (param->scope != SAGA_PARAM_STEP &&
			param->scope != SAGA_PARAM_STEP_FAILED)
			continue;
		action = def->action[param->index];
		if (action == NULL)
			continue;
		if (action->server != NULL)
			saga_fault(c->faults, step,
					   "Let each step compute what it needs from the input, or allow protocol 'saga' only.",
					   "%s: %s: under two-phase commit the result of step \"%s\" is not known to others: no step is done before all are, and after a crash only that it has voted is known of a server",
					   part, param->name, def->graph->nodes[param->index].name);
		else if (remote)
			saga_fault(c->faults, step,
					   "Let each step compute what it needs from the input, or allow protocol 'saga' only.",
					   "%s: %s: under two-phase commit step \"%s\" runs after this one: local steps run in the transaction that decides",
					   part, param->name, def->graph->nodes[param->index].name);
	}
}

/* Waiting for another server, asked for in so many words. */
static void
check_after(SagaCompile *c, int i)
{
	const SagaDefinition *def = c->def;
	const char *server = def->action[i]->server;
	ListCell   *lc;

	if (server == NULL || saga_json_get(c->nodes[i].json, "after") == NULL)
		return;
	foreach(lc, c->nodes[i].deps)
	{
		const SagaCall *other = def->action[lfirst_int(lc)];

		if (other == NULL ||
			(other->server != NULL && strcmp(other->server, server) == 0))
			continue;
		saga_fault(c->faults, def->graph->nodes[i].name,
				   "Leave it out of \"after\": either all of the steps happen, or none.",
				   other->server != NULL ?
				   "under two-phase commit a step cannot wait for step \"%s\" of another server: no step is done before all are" :
				   "under two-phase commit a step cannot wait for local step \"%s\": that runs in the transaction that decides",
				   def->graph->nodes[lfirst_int(lc)].name);
	}
}

static void
check_steps(SagaCompile *c)
{
	const SagaDefinition *def = c->def;
	const SagaCall *hooks[4] = {def->output, def->on_completed,
	def->on_compensated, def->on_stuck};
	static const char *const hook_names[4] = {"output", "on_completed",
	"on_compensated", "on_stuck"};

	for (int i = 0; i < c->nnodes; i++)
	{
		const SagaNode *node = &def->graph->nodes[i];
		const SagaCall *action = def->action[i];
		const char *problem = kind_problem(node);

		if (problem == NULL && action != NULL)
			problem = call_problem(action);
		if (problem != NULL)
			saga_fault(c->faults, node->name,
					   "Allow protocol 'saga' only, or leave the step out.",
					   "%s", problem);
		if (problem != NULL || action == NULL)
			continue;
		check_names(c, node->name, action->server != NULL, "action", action->tmpl);
		check_after(c, i);
	}
	for (int i = 0; i < 4; i++)
		if (hooks[i] != NULL)
			check_names(c, NULL, false, hook_names[i], hooks[i]->tmpl);
}

/* ---- the graph ---- */

/* What is gathered for a server, or (server NULL) for the local steps. */
typedef struct Branch
{
	const char *server;
	const char *label;
	int			nsteps;
	int		   *steps;			/* in the order they run in */
} Branch;

typedef struct Plan
{
	SagaCompile *c;
	SagaDefinition *def;		/* the one that is made */
	int			nbranches;
	Branch	   *branches;
	Branch		local;
} Plan;

static int
decide_node(const Plan *plan)
{
	return plan->nbranches;
}

/*
 * A server's name as part of a step's name and of a gid: letters, digits and
 * '_' only.  saga.two_phase_branches_() has the same rule.
 */
static const char *
label_of(const Plan *plan, const char *server)
{
	for (const char *p = server; *p; p++)
		if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
			  (*p >= '0' && *p <= '9') || *p == '_'))
			return psprintf("server-%d", plan->nbranches);
	return pstrdup(server);
}

static Branch *
branch_of(Plan *plan, const char *server)
{
	Branch	   *branch;

	if (server == NULL)
		return &plan->local;
	for (int i = 0; i < plan->nbranches; i++)
		if (strcmp(plan->branches[i].server, server) == 0)
			return &plan->branches[i];
	branch = &plan->branches[plan->nbranches];
	branch->server = server;
	branch->label = label_of(plan, server);
	branch->steps = palloc(plan->c->nnodes * sizeof(int));
	plan->nbranches++;
	return branch;
}

/* Deal the steps out, each after those it waits for. */
static void
gather(Plan *plan)
{
	const SagaGraph *graph = plan->c->def->graph;

	plan->branches = palloc0(Max(1, graph->nnodes) * sizeof(Branch));
	plan->local.steps = palloc(Max(1, graph->nnodes) * sizeof(int));

	/* servers in the order they are listed in */
	for (int i = 0; i < graph->nnodes; i++)
		if (plan->c->def->action[i] != NULL)
			(void) branch_of(plan, plan->c->def->action[i]->server);
	for (int k = 0; k < graph->nnodes; k++)
	{
		int			i = graph->topo[k];
		Branch	   *branch;

		if (plan->c->def->action[i] == NULL)
			continue;			/* an undo_step: there is no undo here */
		branch = branch_of(plan, plan->c->def->action[i]->server);
		branch->steps[branch->nsteps++] = i;
	}
}

/*
 * Names of steps now mean parts of a node's result, which is an object.  Only
 * results of local steps are ever referred to.
 */
static SagaTemplate *
retarget(const Plan *plan, const SagaTemplate *tmpl)
{
	SagaTemplate *copy;

	if (tmpl == NULL)
		return NULL;
	copy = palloc(sizeof(SagaTemplate));
	*copy = *tmpl;
	copy->params = palloc(Max(1, tmpl->nparams) * sizeof(SagaParam));
	for (int i = 0; i < tmpl->nparams; i++)
	{
		SagaParam  *param = &copy->params[i];
		char	  **path;

		*param = tmpl->params[i];
		if (param->scope != SAGA_PARAM_STEP &&
			param->scope != SAGA_PARAM_STEP_FAILED)
			continue;
		path = palloc((param->npath + 1) * sizeof(char *));
		path[0] = pstrdup(plan->c->def->graph->nodes[param->index].name);
		for (int k = 0; k < param->npath; k++)
			path[k + 1] = param->path[k];
		param->path = path;
		param->npath++;
		param->index = decide_node(plan);
	}
	return copy;
}

static SagaCall *
retarget_call(const Plan *plan, const SagaCall *call)
{
	SagaCall   *copy;

	if (call == NULL)
		return NULL;
	copy = palloc(sizeof(SagaCall));
	*copy = *call;
	copy->tmpl = retarget(plan, call->tmpl);
	return copy;
}

static SagaCall *
new_call(const Branch *branch, SagaBranchRole role, int number, const char *key)
{
	SagaCall   *call = palloc0(sizeof(SagaCall));

	call->server = branch->server ? pstrdup(branch->server) : NULL;
	call->tmpl = palloc0(sizeof(SagaTemplate));
	call->tmpl->sql = "";
	call->tmpl->params = palloc0(sizeof(SagaParam));
	call->timeout_ms = SAGA_DEFAULT_TIMEOUT / 1000;
	call->expect_rows = -1;
	call->returns_typmod = -1;
	call->role = role;
	call->branch = number;
	call->branch_label = branch->label;
	call->branch_key = key;
	return call;
}

/* All steps of a branch as the parts of one call. */
static void
add_parts(const Plan *plan, const Branch *branch, SagaCall *call)
{
	const SagaDefinition *source = plan->c->def;
	int64		timeout = 0;
	int			n = 0;

	call->nparts = branch->nsteps;
	call->parts = palloc(Max(1, call->nparts) * sizeof(SagaCall *));
	call->part_names = palloc(Max(1, call->nparts) * sizeof(char *));
	for (int k = 0; k < call->nparts; k++)
	{
		call->parts[k] = retarget_call(plan, source->action[branch->steps[k]]);
		call->part_names[k] = source->graph->nodes[branch->steps[k]].name;
		timeout += call->parts[k]->timeout_ms;
		n += call->parts[k]->tmpl->nparams;
	}
	if (call->nparts > 0)
		call->timeout_ms = (int) Min(timeout, INT_MAX / 1000);
	call->tmpl->nparams = n;
	call->tmpl->params = palloc(Max(1, n) * sizeof(SagaParam));
	n = 0;
	for (int k = 0; k < call->nparts; k++)
	{
		const SagaTemplate *tmpl = call->parts[k]->tmpl;

		memcpy(call->tmpl->params + n, tmpl->params,
			   tmpl->nparams * sizeof(SagaParam));
		n += tmpl->nparams;
	}
}

/* The policy of the first step that was given one. */
static void
set_vote_retry(const Plan *plan, const Branch *branch, SagaNode *node)
{
	node->retry = vote_retry;
	for (int k = 0; k < branch->nsteps; k++)
	{
		JsonbContainer *retry = saga_json_container(plan->c->nodes[branch->steps[k]].json,
													"retry");

		if (retry == NULL)
			continue;
		node->retry = plan->c->def->graph->nodes[branch->steps[k]].retry;
		if (saga_json_get(retry, "max_attempts") == NULL)
			node->retry.max_attempts = vote_retry.max_attempts;
		return;
	}
}

static SagaNode *
start_node(const Plan *plan, int i, const char *name, int ndeps)
{
	SagaNode   *node = &plan->def->graph->nodes[i];

	node->name = name;
	node->kind = SAGA_NODE_STEP;
	node->on_failure = SAGA_FAILURE_COMPENSATE;
	node->undo_retry = end_retry;
	node->body = node->branch = -1;
	node->deps = palloc(Max(1, ndeps) * sizeof(int32));
	return node;
}

/*
 * Servers are asked in the order of their first steps, and at the same time
 * where those are parallel.  Sagas that lock at several servers then do it in
 * one order: a cycle of waits over servers would be seen by none of them.
 */
static bool
comes_before(const Plan *plan, const Branch *a, const Branch *b)
{
	return (plan->c->before[b->steps[0]][a->steps[0] / 64] >> (a->steps[0] % 64)) & 1;
}

static void
make_branch(const Plan *plan, int i)
{
	const Branch *branch = &plan->branches[i];
	SagaDefinition *def = plan->def;
	int			commit = decide_node(plan) + 1 + i;
	const char *key = psprintf("prepare_%s", branch->label);
	SagaNode   *node = start_node(plan, i, key, i);

	for (int j = 0; j < i; j++)
		if (comes_before(plan, &plan->branches[j], branch))
			node->deps[node->ndeps++] = j;
	set_vote_retry(plan, branch, node);
	node->has_compensation = true;
	def->action[i] = new_call(branch, SAGA_BRANCH_PREPARE, i, key);
	add_parts(plan, branch, def->action[i]);
	def->compensation[i] = new_call(branch, SAGA_BRANCH_ROLLBACK, i, key);

	node = start_node(plan, commit, psprintf("commit_%s", branch->label), 2);
	node->on_failure = SAGA_FAILURE_DEFAULT;
	node->retry = end_retry;
	/* the vote, too: its record may be lost, and that of the decision not */
	node->deps[node->ndeps++] = i;
	node->deps[node->ndeps++] = decide_node(plan);
	def->action[commit] = new_call(branch, SAGA_BRANCH_COMMIT, i, key);
}

static void
make_decision(const Plan *plan)
{
	int			i = decide_node(plan);
	SagaNode   *node = start_node(plan, i, SAGA_DECIDE_STEP, plan->nbranches);

	set_vote_retry(plan, &plan->local, node);
	node->pivot = true;
	node->action_local = true;
	for (int k = 0; k < plan->nbranches; k++)
		node->deps[node->ndeps++] = k;
	plan->def->action[i] = new_call(&plan->local, SAGA_BRANCH_DECIDE, -1, NULL);
	add_parts(plan, &plan->local, plan->def->action[i]);
}

static int
compare_names(const void *a, const void *b, void *arg)
{
	const SagaNode *nodes = arg;

	return strcmp(nodes[*(const int32 *) a].name, nodes[*(const int32 *) b].name);
}

static void *
arena_alloc(SagaArena *arena, size_t size)
{
	return MemoryContextAllocZero(arena->context, size);
}

static void
make_graph(Plan *plan)
{
	SagaDefinition *def = plan->def;
	const SagaGraph *source = plan->c->def->graph;
	SagaArena	arena = {arena_alloc, plan->c->def->context};
	int			n = plan->nbranches * 2 + 1;
	SagaGraph  *graph = palloc0(sizeof(SagaGraph));
	SagaGraphFault fault;

	def->graph = graph;
	graph->nnodes = n;
	graph->nodes = palloc0(n * sizeof(SagaNode));
	graph->nscopes = 1;
	graph->scopes = palloc0(sizeof(SagaScope));
	graph->scopes[0].nnodes = n;
	graph->scopes[0].owner = -1;
	graph->undo_order = SAGA_UNDO_PARALLEL;
	graph->has_on_completed = source->has_on_completed;
	graph->has_on_compensated = source->has_on_compensated;
	graph->has_on_stuck = source->has_on_stuck;
	def->action = palloc0(n * sizeof(SagaCall *));
	def->compensation = palloc0(n * sizeof(SagaCall *));
	def->condition = palloc0(n * sizeof(SagaCall *));
	def->control = palloc0(n * sizeof(SagaCall *));
	for (int i = 0; i < plan->nbranches; i++)
		make_branch(plan, i);
	make_decision(plan);

	def->nnames = n;
	def->by_name = palloc(n * sizeof(int32));
	for (int i = 0; i < n; i++)
		def->by_name[i] = i;
	qsort_arg(def->by_name, n, sizeof(int32), compare_names, graph->nodes);
	if (saga_graph_finish(graph, NULL, &arena, &fault, 1) != 0)
		elog(ERROR, "the graph of two-phase commit has a fault at node %d", fault.node);
}

static bool
too_many(SagaCompile *c, const Plan *plan)
{
	bool		any = false;

	for (int i = 0; i < plan->nbranches; i++)
		if (plan->branches[i].nsteps > SAGA_MAX_BRANCH_STEPS)
		{
			any = true;
			saga_fault(c->faults, NULL,
					   "Put several of them into one function there.",
					   "two-phase commit runs at most %d steps at one server, server \"%s\" has %d",
					   SAGA_MAX_BRANCH_STEPS, plan->branches[i].server,
					   plan->branches[i].nsteps);
		}
	if (plan->nbranches * 2 + 1 > SAGA_MAX_NODES)
	{
		any = true;
		saga_fault(c->faults, NULL, "Use fewer servers.",
				   "two-phase commit over %d servers has more than %d steps",
				   plan->nbranches, SAGA_MAX_NODES);
	}
	return any;
}

void
saga_two_phase_compile(SagaCompile *c)
{
	SagaDefinition *def = c->def;
	SagaDefinition *variant;
	Plan		plan = {.c = c};

	if ((def->protocols & (1 << SAGA_PROTOCOL_TWO_PHASE)) == 0)
		return;
	if (!c->cyclic)
		check_steps(c);
	if (c->faults->items != NIL || c->cyclic || c->nnodes == 0)
		return;
	gather(&plan);
	if (too_many(c, &plan))
		return;
	variant = palloc(sizeof(SagaDefinition));
	*variant = *def;
	variant->is_two_phase = true;
	plan.def = variant;
	make_graph(&plan);
	variant->output = retarget_call(&plan, def->output);
	variant->on_completed = retarget_call(&plan, def->on_completed);
	variant->on_compensated = retarget_call(&plan, def->on_compensated);
	variant->on_stuck = retarget_call(&plan, def->on_stuck);
	def->two_phase = variant;
}

/* ---- values ---- */

void
saga_call_bind(const SagaCall *call, SagaValues *values, char **out)
{
	const char *name = values->step_name;

	if (call->role == SAGA_BRANCH_NONE)
	{
		saga_template_bind(call->tmpl, values, out);
		return;
	}
	for (int k = 0; k < call->nparts; k++)
	{
		values->step_name = call->part_names[k];
		saga_template_bind(call->parts[k]->tmpl, values, out);
		out += call->parts[k]->tmpl->nparams;
	}
	values->step_name = name;
}

void
saga_call_bind_results(const SagaCall *part, int node, Jsonb *results,
					   char **values)
{
	const SagaTemplate *tmpl = part->tmpl;
	char	  **bound = palloc0(Max(1, tmpl->nparams) * sizeof(char *));
	Jsonb	  **by_node = palloc0((node + 1) * sizeof(Jsonb *));
	SagaValues	known;

	memset(&known, 0, sizeof(known));
	known.node = node;
	known.results = by_node;
	by_node[node] = results;
	saga_template_bind(tmpl, &known, bound);
	for (int i = 0; i < tmpl->nparams; i++)
		if (tmpl->params[i].scope == SAGA_PARAM_STEP ||
			tmpl->params[i].scope == SAGA_PARAM_STEP_FAILED)
			values[i] = bound[i];
}

Jsonb *
saga_results_add(Jsonb *results, const char *name, Jsonb *result)
{
	JsonbParseState *state = NULL;
	JsonbValue	key;
	JsonbValue	value;
	Jsonb	   *one;

	key.type = jbvString;
	key.val.string.val = unconstify(char *, name);
	key.val.string.len = strlen(name);
	value.type = jbvNull;
	if (result)
		JsonbToJsonbValue(result, &value);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	pushJsonbValue(&state, WJB_KEY, &key);
	pushJsonbValue(&state, WJB_VALUE, &value);
	one = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
	return results == NULL ? one :
		DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(results),
										   JsonbPGetDatum(one)));
}

/* ---- calls ---- */

void
saga_branch_request(const pg_uuid_t *saga_id, const SagaCall *call, SagaOp op,
					SagaRequest *request)
{
	switch (call->role)
	{
		case SAGA_BRANCH_COMMIT:
			/* a claim, too: it was decided that it shall happen */
			request->mode = SAGA_REQUEST_COMMIT_PREPARED;
			break;
		case SAGA_BRANCH_PREPARE:
			if (op == SAGA_OP_ACTION)
			{
				request->mode = SAGA_REQUEST_PREPARE;
				request->call = call;
				break;
			}
			/* FALLTHROUGH */
		default:
			request->mode = SAGA_REQUEST_ROLLBACK_PREPARED;
			break;
	}
	request->step = call->branch_key;
	request->gid = saga_prepared_gid(saga_id, call->branch_label, call->branch);
}

SagaAnswerKind
saga_branch_answer(const SagaCall *call, SagaOp op, SagaAnswerKind kind)
{
	/* of an output there is no statement */
	if (call == NULL)
		return kind;

	/* claimed: it was rolled back, and its key refused */
	if (call->role == SAGA_BRANCH_PREPARE && op == SAGA_OP_CLAIM &&
		kind == SAGA_ANSWER_DONE)
		return SAGA_ANSWER_REFUSED;

	/* nothing has happened yet: no reason to keep others waiting with locks */
	if ((call->role == SAGA_BRANCH_PREPARE || call->role == SAGA_BRANCH_DECIDE) &&
		op == SAGA_OP_ACTION && kind == SAGA_ANSWER_BROKEN)
		return SAGA_ANSWER_DECLINED;
	return kind;
}
