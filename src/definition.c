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
 * and further "output": expression, "protocol": "two_phase", "protocols":
 * ["saga", "two_phase"] where start() may choose.  A node is one of
 *
 *	{"kind": "step", "name": "payment", "action": sql, "server": "payments",
 *	 "compensation": sql | "none", "pivot": true, "retriable": true | false,
 *	 "timeout": 30, "retry": policy, "result": "rows" | "first" | "none",
 *	 "returns": type, "expect_rows": 1, "for_each": expression,
 *	 "max_parallel": 4, "decline_if": expression, "callback": true,
 *	 "callback_timeout": 3600, "delivery": "at_most_once", "queue": "gpu",
 *	 "compensation_server": "" (this database) | name,
 *	 "compensation_timeout": 30, "compensation_retry": policy}
 *	{"kind": "undo", "name", "compensation": sql, "server", "timeout", "retry"}
 *	{"kind": "call", "name", "definition": name, "input": expression,
 *	 "for_each", "max_parallel", "pivot", "retry"}
 *	{"kind": "sleep", "name", "duration": expression}
 *	{"kind": "sleep_until", "name", "at": expression}
 *	{"kind": "signal", "name", "signal": name, "timeout": 3600,
 *	 "on_timeout": "continue"}
 *	{"kind": "branch", "name", "cases":
 *	 [{"kind": "when", "condition": expression, "steps": [node, ...]}, ...,
 *	  {"kind": "otherwise", "steps": [...]}]}
 *	{"kind": "loop", "name", "steps": [...], "while": expression, "max": 10}
 *	{"kind": "savepoint", "name", "max_tries": 3}
 *	{"kind": "asked", "name", "by": step}: of durable procedures only, a call
 *		to a participant that the result of another step describes
 *	{"kind": "parallel", "nodes": [node, ...]}
 *
 * each with "after": ["a", "b"], "condition": expression and "on_failure":
 * "compensate" | "continue" | "stuck" | "goto:<savepoint>" where it says so;
 * policy is {"max_attempts": 0 (no limit) .., "initial_interval",
 * "max_interval", "backoff", "jitter", "decline_on": ["23", "P0001"],
 * "retry_on", "stuck_on"}.
 *
 * Order: a node waits for the whole of what is listed before it; "after" on a
 * node, or on the group it is in, replaces that.  Only direct predecessors
 * become edges.  A group's condition is one of each of its members; on_failure
 * of a group, branch or loop is that of all nodes in it that have none.
 *
 * A step with for_each becomes two nodes of its name: an EACH, and in its body
 * the STEP that each element has a run of.
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

SagaCall *
saga_compile_new_call(const char *server, SagaTime timeout,
					  JsonbContainer *retry)
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

/* ---- nodes ---- */

static SagaNodeKind
node_kind(const SagaCompileNode *from)
{
	static const struct
	{
		const char *name;
		SagaNodeKind kind;
	}			kinds[] =
	{
		{"undo", SAGA_NODE_UNDO},
		{"sleep", SAGA_NODE_SLEEP},
		{"sleep_until", SAGA_NODE_SLEEP},
		{"signal", SAGA_NODE_SIGNAL},
		{"branch", SAGA_NODE_BRANCH},
		{"loop", SAGA_NODE_LOOP},
		{"savepoint", SAGA_NODE_SAVEPOINT},
	};

	if (saga_json_get(from->json, "for_each") != NULL && !from->element)
		return SAGA_NODE_EACH;
	for (int i = 0; i < (int) lengthof(kinds); i++)
		if (strcmp(kinds[i].name, saga_node_kind(from->json)) == 0)
			return kinds[i].kind;
	return SAGA_NODE_STEP;
}

/* Signals are numbered as they are first waited for. */
static int
signal_number(SagaGraph *graph, const char *name)
{
	for (int i = 0; i < graph->nsignals; i++)
		if (strcmp(graph->signals[i], name) == 0)
			return i;
	graph->signals[graph->nsignals] = pstrdup(name);
	return graph->nsignals++;
}

/* The compensation of a step, or what undo_step() consists of. */
static void
compile_compensation(SagaCompile *c, int i)
{
	JsonbContainer *json = c->nodes[i].json;
	SagaNode   *node = &c->def->graph->nodes[i];
	char	   *text = saga_json_text(json, "compensation");
	char	   *server = saga_json_text(json, "compensation_server");
	JsonbContainer *retry = saga_json_container(json, "compensation_retry");
	SagaCall   *call;

	if (node->kind == SAGA_NODE_UNDO)
		retry = saga_json_container(json, "retry");
	else if (text != NULL && strcmp(text, "none") == 0)
	{
		c->undo_waived[i] = true;
		text = NULL;
	}
	set_retry(&node->undo_retry, retry);
	node->undo_retry.max_attempts = 0;
	node->has_compensation = text != NULL;
	if (text == NULL)
		return;
	call = saga_compile_new_call(server ? server : saga_json_text(json, "server"),
								 get_time(json, "compensation_timeout",
										  get_time(json, "timeout",
												   SAGA_DEFAULT_TIMEOUT)),
								 retry);
	call->shape = SAGA_RESULT_FIRST;
	call->callback = saga_json_bool(json, "callback");
	c->def->compensation[i] = call;
	node->compensation_local = call->server == NULL;
}

static void
compile_step(SagaCompile *c, int i)
{
	JsonbContainer *json = c->nodes[i].json;
	SagaNode   *node = &c->def->graph->nodes[i];
	char	   *delivery = saga_json_text(json, "delivery");
	SagaCall   *action;

	action = saga_compile_new_call(saga_json_text(json, "server"),
								   get_time(json, "timeout", SAGA_DEFAULT_TIMEOUT),
								   saga_json_container(json, "retry"));
	c->def->action[i] = action;
	set_result_options(c, action, json);
	action->queue = saga_json_text(json, "queue");
	if (action->queue != NULL)
		action->kind = SAGA_CALL_QUEUE;
	action->callback = action->queue != NULL || saga_json_bool(json, "callback");
	node->pivot = saga_json_bool(json, "pivot");
	node->timeout = get_time(json, "callback_timeout", 0);
	node->at_most_once = delivery != NULL && strcmp(delivery, "at_most_once") == 0;
	/* one that may be taken on has an outcome that comes later */
	node->action_local = action->server == NULL && !action->callback;
	compile_compensation(c, i);
}

/*
 * A saga of another definition.  To the machine that is a call to elsewhere:
 * it is taken on, and answered when the other saga ends.
 */
static void
compile_child(SagaCompile *c, int i)
{
	JsonbContainer *json = c->nodes[i].json;
	SagaNode   *node = &c->def->graph->nodes[i];
	SagaCall  **calls[] = {&c->def->action[i], &c->def->compensation[i]};

	for (int j = 0; j < (int) lengthof(calls); j++)
	{
		*calls[j] = saga_compile_new_call(NULL, SAGA_DEFAULT_TIMEOUT,
										  saga_json_container(json, "retry"));
		(*calls[j])->kind = SAGA_CALL_CHILD;
		(*calls[j])->child = saga_json_text(json, "definition");
		(*calls[j])->callback = true;
	}
	node->pivot = saga_json_bool(json, "pivot");
	node->has_compensation = true;
	node->action_local = false;
	node->compensation_local = false;
}

/* What is called is not known before it is asked for (procedure_call.c). */
static void
compile_asked(SagaCompile *c, int i)
{
	SagaNode   *node = &c->def->graph->nodes[i];
	SagaCall  **calls[] = {&c->def->action[i], &c->def->compensation[i]};

	for (int j = 0; j < (int) lengthof(calls); j++)
	{
		*calls[j] = saga_compile_new_call(NULL, SAGA_DEFAULT_TIMEOUT, NULL);
		(*calls[j])->server = pstrdup("");	/* some participant */
		(*calls[j])->kind = SAGA_CALL_ASKED;
		(*calls[j])->by = saga_json_text(c->nodes[i].json, "by");
	}
	(*calls[1])->shape = SAGA_RESULT_FIRST;
	node->has_compensation = true;
}

/* All of a node but its texts and its place in the order. */
static void
compile_node(SagaCompile *c, int i)
{
	JsonbContainer *json = c->nodes[i].json;
	SagaGraph  *graph = c->def->graph;
	SagaNode   *node = &graph->nodes[i];
	char	   *text;

	node->kind = node_kind(&c->nodes[i]);
	set_retry(&node->retry, saga_json_container(json, "retry"));
	set_retry(&node->undo_retry, NULL);
	node->undo_retry.max_attempts = 0;
	node->has_condition = !c->nodes[i].element &&
		(c->nodes[i].conditions != NIL || saga_json_get(json, "condition") != NULL);
	c->undo_waived[i] = node->kind != SAGA_NODE_STEP && node->kind != SAGA_NODE_UNDO;

	switch (node->kind)
	{
		case SAGA_NODE_STEP:
			if (strcmp(saga_node_kind(json), "call") == 0)
				compile_child(c, i);
			else if (strcmp(saga_node_kind(json), "asked") == 0)
				compile_asked(c, i);
			else
				compile_step(c, i);
			break;
		case SAGA_NODE_UNDO:
			compile_compensation(c, i);
			break;
		case SAGA_NODE_SIGNAL:
			text = saga_json_text(json, "signal");
			node->signal = signal_number(graph, text ? text : "");
			node->timeout = get_time(json, "timeout", 0);
			node->timeout_continue = saga_json_get(json, "on_timeout") != NULL;
			break;
		case SAGA_NODE_BRANCH:
			if (saga_json_container(json, "cases") != NULL)
				node->ncases = JsonContainerSize(saga_json_container(json, "cases"));
			break;
		case SAGA_NODE_EACH:
			node->max_parallel = (int) saga_json_number(json, "max_parallel", 0);
			break;
		case SAGA_NODE_LOOP:
			node->max_iterations = (int) saga_json_number(json, "max", 0);
			node->has_while = saga_json_get(json, "while") != NULL;
			break;
		case SAGA_NODE_SAVEPOINT:
			node->max_tries = (int) saga_json_number(json, "max_tries", 0);
			break;
		case SAGA_NODE_SLEEP:
			break;
	}
}

/* ---- texts ---- */

/* Its own condition, and those of the groups around it. */
static SagaCall *
compile_condition(SagaCompile *c, int i)
{
	SagaPlace	place = {.c = c,.node = i,.part = "condition"};
	List	   *texts = list_copy(c->nodes[i].conditions);
	char	   *own = saga_json_text(c->nodes[i].json, "condition");
	StringInfoData all;
	ListCell   *lc;

	if (own != NULL)
		texts = lappend(texts, own);
	if (list_length(texts) == 1)
		return saga_compile_expression(&place, SAGA_EXPR_BOOLEAN, linitial(texts));

	/* each by itself first: a fault is one of the text that has it */
	initStringInfo(&all);
	foreach(lc, texts)
	{
		if (saga_compile_expression(&place, SAGA_EXPR_BOOLEAN, lfirst(lc)) == NULL)
			return NULL;
		appendStringInfo(&all, "%s(%s\n)::boolean",
						 all.len > 0 ? " AND " : "", (char *) lfirst(lc));
	}
	return saga_compile_expression(&place, SAGA_EXPR_BOOLEAN, all.data);
}

static SagaCall *
compile_branch(SagaCompile *c, int i)
{
	SagaPlace	place = {.c = c,.node = i,.part = "case"};
	JsonbContainer *cases = saga_json_container(c->nodes[i].json, "cases");
	List	   *texts = NIL;
	int			n = c->def->graph->nodes[i].ncases;

	for (int k = 0; k < n; k++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(cases, k);
		char	   *text = v->type == jbvBinary
			? saga_json_text(v->val.binary.data, "condition") : NULL;

		if (text != NULL)
			texts = lappend(texts, text);
	}
	/* 'otherwise' is the last, and has none */
	return saga_compile_cases(&place, texts,
							  list_length(texts) < n ? n - 1 : -1);
}

/*
 * The elements; where they are a path alone to something of a declared array
 * type, the type of one is known.
 */
static SagaCall *
compile_items(SagaCompile *c, int i)
{
	SagaPlace	place = {.c = c,.node = i,.part = "for_each"};
	SagaScope  *body = &c->def->graph->scopes[c->def->graph->nodes[i].body];
	SagaCall   *call;
	const SagaType *type;

	call = saga_compile_expression(&place, SAGA_EXPR_JSON,
								   saga_json_text(c->nodes[i].json, "for_each"));
	if (call == NULL || call->tmpl->nparams != 1 ||
		strcmp(call->tmpl->sql, "SELECT pg_catalog.to_jsonb(($1\n))") != 0)
		return call;
	type = call->tmpl->params[0].type_info;
	if (type != NULL && type->kind == SAGA_TYPE_ARRAY)
		c->nodes[body->first].item_type = type->elem;
	return call;
}

static SagaCall *
compile_control(SagaCompile *c, int i)
{
	JsonbContainer *json = c->nodes[i].json;
	SagaPlace	place = {.c = c,.node = i};
	bool		until;
	char	   *text;

	switch (c->def->graph->nodes[i].kind)
	{
		case SAGA_NODE_BRANCH:
			return compile_branch(c, i);
		case SAGA_NODE_EACH:
			return compile_items(c, i);
		case SAGA_NODE_LOOP:
			place.part = "while";
			place.own_body = true;
			text = saga_json_text(json, "while");
			return text == NULL ? NULL
				: saga_compile_expression(&place, SAGA_EXPR_WHILE, text);
		case SAGA_NODE_SLEEP:
			until = strcmp(saga_node_kind(json), "sleep_until") == 0;
			place.part = until ? "at" : "duration";
			text = saga_json_text(json, place.part);
			return text == NULL ? NULL
				: saga_compile_expression(&place, until ? SAGA_EXPR_INSTANT
										  : SAGA_EXPR_DURATION, text);
		default:
			return NULL;
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
set_expression(SagaCall *call, const SagaCall *expression)
{
	if (expression == NULL)
		return;
	call->tmpl = expression->tmpl;
	call->part = expression->part;
	call->plain = expression->plain;
}

static void
compile_action(SagaCompile *c, int i)
{
	JsonbContainer *json = c->nodes[i].json;
	SagaCall   *action = c->def->action[i];
	SagaPlace	place = {.c = c,.node = i,.part = "action"};
	SagaCall   *expression;
	char	   *text;

	if (action->kind == SAGA_CALL_ASKED)
		return;
	if (action->kind == SAGA_CALL_CHILD)
	{
		place.part = "input";
		text = saga_json_text(json, "input");
		expression = saga_compile_expression(&place, SAGA_EXPR_JSON,
											 text ? text : "{}");
		set_expression(action, expression);
		return;
	}
	place.token = action->callback;
	place.remote = action->server != NULL;
	text = saga_json_text(json, "action");
	if (text != NULL && action->kind == SAGA_CALL_QUEUE)
	{
		expression = saga_compile_expression(&place, SAGA_EXPR_JSON, text);
		set_expression(action, expression);
	}
	else if (text != NULL)
	{
		place.http = is_http(action, text);
		if (place.http)
			action->kind = SAGA_CALL_HTTP;
		if (place.http && (action->expect_rows >= 0 ||
						   action->shape == SAGA_RESULT_ROWS ||
						   action->shape == SAGA_RESULT_FIRST))
			saga_fault(c->faults, c->def->graph->nodes[i].name,
					   "Of an HTTP step, result can be 'none' only.",
					   "an HTTP answer has no rows");
		action->tmpl = saga_compile_template(&place, text);
	}
	text = saga_json_text(json, "decline_if");
	if (text != NULL)
	{
		SagaPlace	answer = {.c = c,.node = i,.part = "decline_if",
			.own_result = true};

		action->decline_if = saga_compile_expression(&answer, SAGA_EXPR_BOOLEAN,
													 text);
	}
}

static void
compile_texts(SagaCompile *c, int i)
{
	SagaDefinition *def = c->def;
	SagaCall   *compensation = def->compensation[i];
	char	   *text;

	if (def->graph->nodes[i].has_condition)
		def->condition[i] = compile_condition(c, i);
	def->control[i] = compile_control(c, i);
	if (def->action[i] != NULL)
		compile_action(c, i);
	if (compensation != NULL && compensation->kind != SAGA_CALL_CHILD &&
		compensation->kind != SAGA_CALL_ASKED)
	{
		SagaPlace	place = {.c = c,.node = i,.part = "compensation",.undo = true,
			.remote = compensation->server != NULL,
			.token = compensation->callback};

		text = saga_json_text(c->nodes[i].json, "compensation");
		place.http = is_http(compensation, text);
		if (place.http)
			compensation->kind = SAGA_CALL_HTTP;
		compensation->tmpl = saga_compile_template(&place, text);
	}
}

static SagaCall *
compile_hook(SagaCompile *c, JsonbContainer *body, const char *key)
{
	char	   *text = saga_json_text(body, key);
	SagaPlace	place = {.c = c,.node = -1,.part = key};
	SagaCall   *call;

	if (text == NULL)
		return NULL;
	call = saga_compile_new_call(NULL, SAGA_DEFAULT_TIMEOUT, NULL);
	call->shape = SAGA_RESULT_NONE;
	call->tmpl = saga_compile_template(&place, text);
	return call;
}

static SagaCall *
compile_output(SagaCompile *c, JsonbContainer *body)
{
	SagaPlace	place = {.c = c,.node = -1,.part = "output"};
	char	   *text = saga_json_text(body, "output");

	return text == NULL ? NULL
		: saga_compile_expression(&place, SAGA_EXPR_JSON, text);
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

/* The number of faults of the graph; some of them are for others to report. */
static int
finish_graph(SagaCompile *c)
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
		node->deps = palloc(Max(1, list_length(c->nodes[i].deps)) * sizeof(int32));
		foreach(lc, c->nodes[i].deps)
			node->deps[node->ndeps++] = lfirst_int(lc);
	}
	/* without a pivot, no compensation just means that nothing is undone */
	if (!has_pivot || (c->def->protocols & (1 << SAGA_PROTOCOL_SAGA)) == 0)
		memset(c->undo_waived, true, graph->nnodes);
	n = saga_graph_finish(graph, c->undo_waived, &arena, found, max);
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
		if (graph->nodes[i].retry.max_attempts < 0)
			graph->nodes[i].retry.max_attempts =
				graph->nodes[i].after_pivot ? 0 : 10;
	return n;
}

static void
compile_options(SagaDefinition *def, JsonbContainer *body)
{
	char	   *order = saga_json_text(body, "compensation_order");
	char	   *protocol = saga_json_text(body, "protocol");

	def->protocol = protocol != NULL && strcmp(protocol, "two_phase") == 0
		? SAGA_PROTOCOL_TWO_PHASE : SAGA_PROTOCOL_SAGA;
	def->protocols = saga_json_get(body, "protocols") == NULL
		? 1 << def->protocol
		: 1 << SAGA_PROTOCOL_SAGA | 1 << SAGA_PROTOCOL_TWO_PHASE;
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
	int			n = Max(1, c->nnodes);

	c->undo_waived = MemoryContextAllocZero(c->scratch, n);
	def->action = palloc0(n * sizeof(SagaCall *));
	def->compensation = palloc0(n * sizeof(SagaCall *));
	def->condition = palloc0(n * sizeof(SagaCall *));
	def->control = palloc0(n * sizeof(SagaCall *));
	def->graph->signals = palloc0(n * sizeof(char *));

	/* kinds and declared types of all results first: texts refer to them */
	for (int i = 0; i < c->nnodes; i++)
		compile_node(c, i);
	for (int i = 0; i < c->nnodes; i++)
		compile_texts(c, i);
	saga_compile_failures(c);
	if (c->nnodes > 0 && !c->cyclic)
	{
		int			n = finish_graph(c);

		saga_compile_rules(c);
		if (n > 0 && c->faults->items == NIL)
			elog(ERROR, "the graph of saga \"%s\" has a fault", def->name);
	}
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
	SagaCompile c = {.def = def,.faults = faults};

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
	def->output = compile_output(&c, body);
	def->on_completed = compile_hook(&c, body, "on_completed");
	def->on_compensated = compile_hook(&c, body, "on_compensated");
	def->on_stuck = compile_hook(&c, body, "on_stuck");
	/* an output is evaluated in the ending transaction, like on_completed */
	def->graph->has_on_completed = def->on_completed != NULL || def->output != NULL;
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
