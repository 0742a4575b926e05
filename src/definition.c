/*
 * definition.c
 *		Stored JSON of a definition -> SagaDefinition.
 *
 * Called by definition_cache.c, and by define.c on a body that is about to be
 * stored: so what define accepts compiles, by the same code.  Reads catalogs
 * for types only; takes no lock, writes nothing, opens no connection.
 *
 * The body, as define_body.c makes it.  A key is there only where its value is
 * not the default, so equal definitions have equal bodies; types are written
 * such that they mean the same under every search_path; times are seconds.
 *
 *	{"format": 1,
 *	 "steps": [node, ...],
 *	 "input": [{"name": "order_id", "type": "bigint"}, ...],
 *	 "deadline": 3600, "retention": ..., "key_retention": ...,
 *	 "max_running": 8, "priority": 1,
 *	 "compensation_order": "graph" | "parallel",
 *	 "on_completed": sql, "on_compensated": sql, "on_stuck": sql}
 *
 * node is one of
 *
 *	{"kind": "step", "name": "payment", "action": sql, "server": "payments",
 *	 "compensation": sql | "none", "after": ["a", "b"], "pivot": true,
 *	 "retriable": true | false, "timeout": 30, "retry": policy,
 *	 "on_failure": "compensate" | "continue" | "stuck",
 *	 "result": "rows" | "first" | "none", "returns": type, "expect_rows": 1,
 *	 "compensation_server": "" (this database) | name,
 *	 "compensation_timeout": 30, "compensation_retry": policy}
 *	{"kind": "undo", "name": ..., "compensation": sql, "server", "after",
 *	 "timeout", "retry"}
 *	{"kind": "parallel", "nodes": [node, ...], "after": [...]}
 *
 * and policy {"max_attempts": 0 (no limit) .., "initial_interval",
 * "max_interval", "backoff", "jitter", "decline_on": ["23", "P0001"],
 * "retry_on", "stuck_on"}.
 *
 * Order: a node waits for the whole of what is listed before it; "after" on a
 * node, or on the group it is in, replaces that.  Only direct predecessors
 * become edges.
 */
#include "postgres.h"

#include <math.h>

#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "compat.h"
#include "compile.h"
#include "server.h"
#include "two_phase.h"
#include "types.h"

/* ---- JSON objects ---- */

JsonbValue *
saga_json_get(JsonbContainer *object, const char *key)
{
	JsonbValue *v;

	if (!JsonContainerIsObject(object))
		return NULL;
	v = getKeyJsonValueFromContainer(object, key, strlen(key), NULL);
	return v != NULL && v->type == jbvNull ? NULL : v;
}

char *
saga_json_text(JsonbContainer *object, const char *key)
{
	JsonbValue *v = saga_json_get(object, key);

	if (v == NULL || v->type != jbvString)
		return NULL;
	return pnstrdup(v->val.string.val, v->val.string.len);
}

bool
saga_json_bool(JsonbContainer *object, const char *key)
{
	JsonbValue *v = saga_json_get(object, key);

	return v != NULL && v->type == jbvBool && v->val.boolean;
}

double
saga_json_number(JsonbContainer *object, const char *key, double otherwise)
{
	JsonbValue *v = saga_json_get(object, key);

	if (v == NULL || v->type != jbvNumeric)
		return otherwise;
	return DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
											  NumericGetDatum(v->val.numeric)));
}

JsonbContainer *
saga_json_container(JsonbContainer *object, const char *key)
{
	JsonbValue *v = saga_json_get(object, key);

	return v != NULL && v->type == jbvBinary ? v->val.binary.data : NULL;
}

static SagaTime
get_time(JsonbContainer *object, const char *key, SagaTime otherwise)
{
	double		seconds = saga_json_number(object, key, -1);

	return seconds < 0 ? otherwise : (SagaTime) rint(seconds * SAGA_SECOND);
}

static char **
get_texts(JsonbContainer *object, const char *key, int *n)
{
	JsonbContainer *array = saga_json_container(object, key);
	char	  **texts;

	*n = 0;
	if (array == NULL || !JsonContainerIsArray(array))
		return NULL;
	texts = palloc(JsonContainerSize(array) * sizeof(char *));
	for (uint32 i = 0; i < JsonContainerSize(array); i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(array, i);

		if (v->type == jbvString)
			texts[(*n)++] = pnstrdup(v->val.string.val, v->val.string.len);
	}
	return texts;
}

/* ---- calls ---- */

static SagaCall *
new_call(const char *server, SagaTime timeout, JsonbContainer *retry)
{
	SagaCall   *call = palloc0(sizeof(SagaCall));

	call->server = server && server[0] != '\0' ? pstrdup(server) : NULL;
	call->timeout_ms = (int) Max(1, timeout / 1000);
	call->expect_rows = -1;
	call->returns_typmod = -1;
	if (retry != NULL)
	{
		call->decline_on = get_texts(retry, "decline_on", &call->ndecline_on);
		call->retry_on = get_texts(retry, "retry_on", &call->nretry_on);
		call->stuck_on = get_texts(retry, "stuck_on", &call->nstuck_on);
	}
	return call;
}

static void
set_retry(SagaRetry *retry, JsonbContainer *policy)
{
	retry->max_attempts = -1;	/* not given: known when the pivot is */
	retry->initial_interval = SAGA_SECOND;
	retry->max_interval = 60 * SAGA_SECOND;
	retry->backoff = 2;
	retry->jitter = 0.2;
	if (policy == NULL)
		return;
	retry->max_attempts = (int32) saga_json_number(policy, "max_attempts", -1);
	retry->initial_interval = get_time(policy, "initial_interval",
									   retry->initial_interval);
	retry->max_interval = get_time(policy, "max_interval",
								   Max(retry->max_interval,
									   retry->initial_interval));
	retry->backoff = saga_json_number(policy, "backoff", retry->backoff);
	retry->jitter = saga_json_number(policy, "jitter", retry->jitter);
}

static void
set_result_options(SagaCompile *c, SagaCall *call, JsonbContainer *json)
{
	char	   *shape = saga_json_text(json, "result");
	char	   *returns = saga_json_text(json, "returns");
	char	   *problem;

	if (shape != NULL)
		call->shape = strcmp(shape, "rows") == 0 ? SAGA_RESULT_ROWS :
			strcmp(shape, "first") == 0 ? SAGA_RESULT_FIRST :
			strcmp(shape, "none") == 0 ? SAGA_RESULT_NONE : SAGA_RESULT_ONE;
	call->expect_rows = (int) saga_json_number(json, "expect_rows", -1);
	if (returns == NULL)
		return;
	if (!saga_type_parse(returns, &call->returns, &call->returns_typmod, &problem))
		saga_fault(c->faults, saga_json_text(json, "name"), NULL,
				   "returns: %s", problem);
	else
		call->returns_type = saga_type_resolve(call->returns,
											   call->returns_typmod,
											   CurrentMemoryContext);
}

/* All of a node but its texts and its place in the order. */
static void
compile_node(SagaCompile *c, int i, bool *undo_waived)
{
	JsonbContainer *json = c->json[i];
	SagaDefinition *def = c->def;
	SagaNode   *node = &def->graph->nodes[i];
	char	   *server = saga_json_text(json, "server");
	char	   *undo_server = saga_json_text(json, "compensation_server");
	char	   *failure = saga_json_text(json, "on_failure");
	char	   *compensation = saga_json_text(json, "compensation");
	SagaTime	timeout = get_time(json, "timeout", SAGA_DEFAULT_TIMEOUT);
	JsonbContainer *retry = saga_json_container(json, "retry");
	JsonbContainer *undo_retry = saga_json_container(json, "compensation_retry");

	node->kind = strcmp(saga_node_kind(json), "undo") == 0
		? SAGA_NODE_UNDO : SAGA_NODE_STEP;
	if (node->kind == SAGA_NODE_UNDO)
		undo_retry = retry;
	else if (compensation != NULL && strcmp(compensation, "none") == 0)
	{
		undo_waived[i] = true;
		compensation = NULL;
	}
	if (undo_server == NULL)
		undo_server = server;

	node->pivot = saga_json_bool(json, "pivot");
	if (failure != NULL)
		node->on_failure = strcmp(failure, "continue") == 0 ? SAGA_FAILURE_CONTINUE :
			strcmp(failure, "stuck") == 0 ? SAGA_FAILURE_STUCK :
			SAGA_FAILURE_COMPENSATE;
	set_retry(&node->retry, retry);
	set_retry(&node->undo_retry, undo_retry);
	node->undo_retry.max_attempts = 0;
	node->has_compensation = compensation != NULL;

	if (node->kind == SAGA_NODE_STEP)
	{
		def->action[i] = new_call(server, timeout, retry);
		set_result_options(c, def->action[i], json);
	}
	node->action_local = def->action[i] != NULL && def->action[i]->server == NULL;
	if (compensation != NULL)
	{
		def->compensation[i] = new_call(undo_server,
										get_time(json, "compensation_timeout",
												 timeout),
										undo_retry);
		def->compensation[i]->shape = SAGA_RESULT_FIRST;
		node->compensation_local = def->compensation[i]->server == NULL;
	}
}

/*
 * Is the text that of an HTTP request?  A server that is gone can no longer
 * tell, but the text can.
 */
static bool
is_http(const SagaCall *call, const char *text)
{
	SagaServerKind kind;

	if (call->server == NULL)
		return false;
	if (saga_server_kind(call->server, &kind))
		return kind == SAGA_SERVER_HTTP;
	return saga_template_looks_http(text);
}

static void
compile_texts(SagaCompile *c, int i)
{
	JsonbContainer *json = c->json[i];
	SagaCall   *action = c->def->action[i];
	SagaCall   *compensation = c->def->compensation[i];
	char	   *text;
	SagaPlace		place = {.c = c,.node = i};

	if (action != NULL && (text = saga_json_text(json, "action")) != NULL)
	{
		place.part = "action";
		place.remote = action->server != NULL;
		place.http = is_http(action, text);
		if (place.http && (action->expect_rows >= 0 ||
						   action->shape == SAGA_RESULT_ROWS ||
						   action->shape == SAGA_RESULT_FIRST))
			saga_fault(c->faults, c->def->graph->nodes[i].name,
					   "Of an HTTP step, result can be 'none' only.",
					   "an HTTP answer has no rows");
		action->tmpl = saga_compile_template(&place, text);
	}
	if (compensation != NULL)
	{
		place.part = "compensation";
		place.undo = true;
		place.remote = compensation->server != NULL;
		text = saga_json_text(json, "compensation");
		place.http = is_http(compensation, text);
		compensation->tmpl = saga_compile_template(&place, text);
	}
}

static SagaCall *
compile_hook(SagaCompile *c, JsonbContainer *body, const char *key)
{
	char	   *text = saga_json_text(body, key);
	SagaPlace		place = {.c = c,.node = -1,.part = key};
	SagaCall   *call;

	if (text == NULL)
		return NULL;
	call = new_call(NULL, SAGA_DEFAULT_TIMEOUT, NULL);
	call->shape = SAGA_RESULT_NONE;
	call->tmpl = saga_compile_template(&place, text);
	return call;
}

/* ---- the whole ---- */

static int
compare_fields(const void *a, const void *b)
{
	const char *x = ((const SagaInputField *) a)->name;
	const char *y = ((const SagaInputField *) b)->name;
	size_t		nx = strlen(x),
				ny = strlen(y);

	/* as jsonb does: shorter first, then bytewise */
	if (nx != ny)
		return nx < ny ? -1 : 1;
	return memcmp(x, y, nx);
}

static void
compile_input(SagaDefinition *def, JsonbContainer *body, SagaFaults *faults)
{
	JsonbContainer *array = saga_json_container(body, "input");

	if (array == NULL || !JsonContainerIsArray(array))
		return;
	def->typed_input = true;
	def->input = palloc0(Max(1, JsonContainerSize(array)) * sizeof(SagaInputField));
	for (uint32 i = 0; i < JsonContainerSize(array); i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(array, i);
		SagaInputField *field = &def->input[def->ninput];
		char	   *type;
		char	   *problem;

		if (v->type != jbvBinary ||
			(field->name = saga_json_text(v->val.binary.data, "name")) == NULL ||
			(type = saga_json_text(v->val.binary.data, "type")) == NULL)
			continue;
		if (!saga_type_parse(type, &field->type, &field->typmod, &problem))
		{
			saga_fault(faults, NULL, NULL, "input: field \"%s\": %s",
					   field->name, problem);
			continue;
		}
		field->type_info = saga_type_resolve(field->type, field->typmod,
											 def->context);
		def->input_as_owner |= field->type_info->has_domain;
		def->ninput++;
	}
	qsort(def->input, def->ninput, sizeof(SagaInputField), compare_fields);
}

static void *
arena_alloc(SagaArena *arena, size_t size)
{
	return MemoryContextAllocZero(arena->context, size);
}

static void
finish_graph(SagaCompile *c, bool *undo_waived)
{
	SagaGraph  *graph = c->def->graph;
	SagaArena	arena = {arena_alloc, c->def->context};
	int			max = graph->nnodes + 1;
	SagaGraphFault *found = MemoryContextAlloc(c->scratch,
											   max * sizeof(SagaGraphFault));
	bool		has_pivot = false;
	int			n;

	for (int i = 0; i < graph->nnodes; i++)
	{
		SagaNode   *node = &graph->nodes[i];
		ListCell   *lc;

		has_pivot |= node->pivot;
		node->deps = palloc(Max(1, list_length(c->deps[i])) * sizeof(int32));
		foreach(lc, c->deps[i])
			node->deps[node->ndeps++] = lfirst_int(lc);
	}
	/* without a pivot, no compensation just means that nothing is undone */
	if (!has_pivot)
		memset(undo_waived, true, graph->nnodes);
	n = saga_graph_finish(graph, undo_waived, &arena, found, max);
	for (int i = 0; i < Min(n, max); i++)
	{
		const char *name = graph->nodes[found[i].node].name;

		if (found[i].kind == SAGA_GRAPH_TWO_PIVOTS)
			saga_fault(c->faults, name,
					   "Mark the one step after which the saga only goes forward.",
					   "a second step is the pivot");
		else if (found[i].kind == SAGA_GRAPH_UNDO_MISSING)
			saga_fault(c->faults, name,
					   "Give a compensation, write compensation => 'none' if nothing is to be undone, or put the step after the pivot.",
					   "the step may have to be undone and has no compensation");
	}
	for (int i = 0; i < graph->nnodes; i++)
	{
		SagaNode   *node = &graph->nodes[i];
		JsonbValue *retriable = saga_json_get(c->json[i], "retriable");

		if (node->retry.max_attempts < 0)
			node->retry.max_attempts = node->after_pivot ? 0 : 10;
		if (node->after_pivot && retriable != NULL &&
			retriable->type == jbvBool && !retriable->val.boolean)
			saga_fault(c->faults, node->name,
					   "After the pivot there is no way back: put the step before it, or make it one that can be repeated until it succeeds.",
					   "the step comes after the pivot and is not retriable");
	}
}

static void
compile_options(SagaDefinition *def, JsonbContainer *body)
{
	char	   *order = saga_json_text(body, "compensation_order");

	def->graph->undo_order = order == NULL ? SAGA_UNDO_REVERSE :
		strcmp(order, "graph") == 0 ? SAGA_UNDO_GRAPH :
		strcmp(order, "parallel") == 0 ? SAGA_UNDO_PARALLEL : SAGA_UNDO_REVERSE;
	def->deadline = get_time(body, "deadline", SAGA_NEVER);
	def->retention = get_time(body, "retention", -1);
	def->key_retention = get_time(body, "key_retention", -1);
	def->max_running = (int) saga_json_number(body, "max_running", 0);
	def->priority = (int) saga_json_number(body, "priority", 0);
}

static void
compile_nodes(SagaCompile *c)
{
	SagaDefinition *def = c->def;
	bool	   *undo_waived;

	undo_waived = MemoryContextAllocZero(c->scratch, Max(1, c->nnodes));
	def->action = palloc0(Max(1, c->nnodes) * sizeof(SagaCall *));
	def->compensation = palloc0(Max(1, c->nnodes) * sizeof(SagaCall *));
	def->condition = palloc0(Max(1, c->nnodes) * sizeof(SagaCall *));
	def->control = palloc0(Max(1, c->nnodes) * sizeof(SagaCall *));

	/* declared types of all results first: texts refer to them */
	for (int i = 0; i < c->nnodes; i++)
		compile_node(c, i, undo_waived);
	for (int i = 0; i < c->nnodes; i++)
		compile_texts(c, i);
	if (!c->cyclic && c->nnodes > 0)
		finish_graph(c, undo_waived);
}

SagaDefinition *
saga_definition_compile(const SagaDefinitionRow *row, SagaFaults *faults)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "saga definition",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	SagaDefinition *def = palloc0(sizeof(SagaDefinition));
	JsonbContainer *body = &row->body->root;
	SagaCompile		c = {.def = def,.faults = faults};

	def->id = row->id;
	def->name = pstrdup(row->name);
	def->version = row->version;
	def->owner = row->owner;
	def->paused = row->paused;
	def->search_path = pstrdup(row->search_path);
	def->context = context;
	def->graph = palloc0(sizeof(SagaGraph));

	c.scratch = AllocSetContextCreate(old, "saga compile",
									  ALLOCSET_DEFAULT_SIZES);
	compile_input(def, body, faults);
	compile_options(def, body);
	saga_compile_order(&c, body);
	compile_nodes(&c);
	def->on_completed = compile_hook(&c, body, "on_completed");
	def->on_compensated = compile_hook(&c, body, "on_compensated");
	def->on_stuck = compile_hook(&c, body, "on_stuck");
	def->graph->has_on_completed = def->on_completed != NULL;
	def->graph->has_on_compensated = def->on_compensated != NULL;
	def->graph->has_on_stuck = def->on_stuck != NULL;
	saga_two_phase_compile(&c);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(c.scratch);
	return def;
}

SagaCall *
saga_definition_eval(const SagaDefinition *def, int node, SagaEval eval)
{
	return eval == SAGA_EVAL_CONDITION ? def->condition[node] : def->control[node];
}

int
saga_definition_node(const SagaDefinition *def, const char *step)
{
	int			low = 0;
	int			high = def->nnames - 1;

	while (low <= high)
	{
		int			middle = (low + high) / 2;
		int			node = def->by_name[middle];
		int			order = strcmp(step, def->graph->nodes[node].name);

		if (order == 0)
			return node;
		if (order < 0)
			high = middle - 1;
		else
			low = middle + 1;
	}
	return SAGA_NO_NODE;
}
