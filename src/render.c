/*
 * render.c
 *		saga.render(): what would be sent for a step.
 *
 * Sessions only.  Binds a template just as a coordinator does, with made-up
 * facts of a saga, and sends nothing.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "define.h"
#include "rights.h"

PG_FUNCTION_INFO_V1(saga_render);

/* What belongs to a step; the operations of 'control' by kind of node. */
static const struct
{
	const char *operation;
	SagaNodeKind kind;
}			controls[] =
{
	{"cases", SAGA_NODE_BRANCH},
	{"for_each", SAGA_NODE_EACH},
	{"while", SAGA_NODE_LOOP},
	{"duration", SAGA_NODE_SLEEP},
	{"at", SAGA_NODE_SLEEP},
};

static int
find_node(const SagaDefinition *def, const char *step)
{
	int			node = step ? saga_definition_node(def, step) : SAGA_NO_NODE;

	if (node < 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("step \"%s\" of saga \"%s\" does not exist",
						step ? step : "", def->name)));
	return node;
}

/* The node whose calls a step makes: of a for_each, its body. */
static int
caller(const SagaDefinition *def, int node)
{
	const SagaGraph *graph = def->graph;

	return graph->nodes[node].kind == SAGA_NODE_EACH
		? graph->scopes[graph->nodes[node].body].first : node;
}

static const SagaCall *
find_step_call(const SagaDefinition *def, const char *operation, int *node)
{
	int			inner = caller(def, *node);

	if (strcmp(operation, "condition") == 0)
		return def->condition[*node];
	for (int i = 0; i < (int) lengthof(controls); i++)
		if (strcmp(operation, controls[i].operation) == 0)
			return def->graph->nodes[*node].kind == controls[i].kind
				? def->control[*node] : NULL;
	*node = inner;
	if (strcmp(operation, "action") == 0)
		return def->action[inner];
	if (strcmp(operation, "compensation") == 0)
		return def->compensation[inner];
	return def->action[inner] ? def->action[inner]->decline_if : NULL;
}

static bool
is_step_operation(const char *operation)
{
	static const char *const names[] = {"action", "compensation", "condition",
	"decline_if"};

	for (int i = 0; i < (int) lengthof(names); i++)
		if (strcmp(operation, names[i]) == 0)
			return true;
	for (int i = 0; i < (int) lengthof(controls); i++)
		if (strcmp(operation, controls[i].operation) == 0)
			return true;
	return false;
}

static const SagaCall *
find_call(const SagaDefinition *def, const char *step, const char *operation,
		  int *node)
{
	const SagaCall *call = NULL;

	*node = SAGA_NODE_END;
	if (strcmp(operation, "on_completed") == 0)
		call = def->on_completed;
	else if (strcmp(operation, "on_compensated") == 0)
		call = def->on_compensated;
	else if (strcmp(operation, "on_stuck") == 0)
		call = def->on_stuck;
	else if (strcmp(operation, "output") == 0)
		call = def->output;
	else if (is_step_operation(operation))
	{
		*node = find_node(def, step);
		call = find_step_call(def, operation, node);
	}
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized operation: \"%s\"", operation),
				 errhint("Operations are action, compensation, condition, decline_if, for_each, cases, while, duration, at, output, on_completed, on_compensated and on_stuck.")));
	/* the undo of a child saga is no statement */
	if (call == NULL || call->tmpl == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("saga \"%s\" has no %s%s%s", def->name, operation,
						*node >= 0 ? " for step " : "", *node >= 0 ? step : "")));
	return call;
}

/* Made-up facts beside the results of steps: the element, and so on. */
static void
set_position(SagaValues *values, Jsonb *results)
{
	JsonbValue *item = results ? saga_json_get(&results->root, "item") : NULL;

	if (item != NULL)
		values->item = JsonbValueToJsonb(item);
	if (results == NULL)
		return;
	values->item_index = (int) saga_json_number(&results->root, "item_index", 0);
	values->iteration = (int) saga_json_number(&results->root, "iteration", 0);
}

/* Results by step name -> by node. */
static Jsonb **
split_results(const SagaDefinition *def, Jsonb *results, int item_index)
{
	Jsonb	  **split = palloc0(Max(1, def->graph->nnodes) * sizeof(Jsonb *));

	for (int i = 0; results != NULL && i < def->graph->nnodes; i++)
	{
		JsonbValue *v = saga_json_get(&results->root, def->graph->nodes[i].name);

		if (v != NULL)
			split[i] = JsonbValueToJsonb(v);
	}

	/* what is given for a for_each is that of all elements */
	for (int i = 0; i < def->graph->nnodes; i++)
	{
		int			body = caller(def, i);
		JsonbValue *v;

		if (body == i || split[i] == NULL || !JB_ROOT_IS_ARRAY(split[i]))
			continue;
		v = getIthJsonbValueFromContainer(&split[i]->root, item_index);
		split[body] = v ? JsonbValueToJsonb(v) : NULL;
	}
	return split;
}

static void
push_text(JsonbParseState **ps, JsonbIteratorToken token, const char *text)
{
	JsonbValue	v;

	v.type = text ? jbvString : jbvNull;
	if (text != NULL)
	{
		v.val.string.val = pstrdup(text);
		v.val.string.len = strlen(text);
	}
	pushJsonbValue(ps, token, &v);
}

static Jsonb *
rendered_http(const SagaCall *call, const SagaValues *facts, char **values)
{
	JsonbParseState *ps = NULL;
	const char *problem;
	char	   *path = saga_http_path(call->tmpl, values, &problem);
	char	   *body = saga_http_body(call->tmpl, values);

	if (path == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the request cannot be made: %s", problem)));
	pushJsonbValue(&ps, WJB_BEGIN_OBJECT, NULL);
	push_text(&ps, WJB_KEY, "server");
	push_text(&ps, WJB_VALUE, call->server);
	push_text(&ps, WJB_KEY, "method");
	push_text(&ps, WJB_VALUE, call->tmpl->method);
	push_text(&ps, WJB_KEY, "path");
	push_text(&ps, WJB_VALUE, path);
	push_text(&ps, WJB_KEY, "body");
	push_text(&ps, WJB_VALUE, body ?
			  pg_any_to_server(body, strlen(body), PG_UTF8) : NULL);
	push_text(&ps, WJB_KEY, "idempotency_key");
	push_text(&ps, WJB_VALUE, saga_idempotency_key(&facts->saga_id,
												   facts->step_name, facts->op));
	return JsonbValueToJsonb(pushJsonbValue(&ps, WJB_END_OBJECT, NULL));
}

static Jsonb *
rendered(const SagaCall *call, char **values)
{
	JsonbParseState *ps = NULL;

	pushJsonbValue(&ps, WJB_BEGIN_OBJECT, NULL);
	push_text(&ps, WJB_KEY, "server");
	push_text(&ps, WJB_VALUE, call->server);
	push_text(&ps, WJB_KEY, "sql");
	push_text(&ps, WJB_VALUE, call->tmpl->sql);
	push_text(&ps, WJB_KEY, "values");
	pushJsonbValue(&ps, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < call->tmpl->nparams; i++)
		push_text(&ps, WJB_ELEM, values[i]);
	pushJsonbValue(&ps, WJB_END_ARRAY, NULL);
	push_text(&ps, WJB_KEY, "types");
	pushJsonbValue(&ps, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < call->tmpl->nparams; i++)
	{
		Oid			type = call->tmpl->params[i].bind_type;

		push_text(&ps, WJB_ELEM, OidIsValid(type) ? format_type_be(type) : NULL);
	}
	pushJsonbValue(&ps, WJB_END_ARRAY, NULL);
	return JsonbValueToJsonb(pushJsonbValue(&ps, WJB_END_OBJECT, NULL));
}

/*
 * saga.render(definition text, step text, input jsonb, results jsonb,
 * operation text, version integer) -> jsonb
 */
Datum
saga_render(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *step;
	char	   *operation;
	SagaDefinition *def;
	const SagaCall *call;
	SagaValues	values;
	Jsonb	   *results;
	char	  **texts;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(4))
		PG_RETURN_NULL();
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	step = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	operation = text_to_cstring(PG_GETARG_TEXT_PP(4));
	saga_require_privilege(name, "see");
	def = saga_definition_by_name(name, PG_ARGISNULL(5) ? 0 : PG_GETARG_INT32(5));
	if (def == NULL)
		saga_no_such_definition(name);

	memset(&values, 0, sizeof(values));
	call = find_call(def, step, operation, &values.node);
	values.saga_name = def->name;
	values.step_name = values.node >= 0 ? step : operation;
	values.attempt = 1;
	values.op = values.node < 0 ? SAGA_OP_HOOK :
		call == def->compensation[values.node] ? SAGA_OP_UNDO : SAGA_OP_ACTION;
	values.started_by = GetUserNameFromId(GetUserId(), false);
	values.started_at = GetCurrentTransactionStartTimestamp();
	values.deadline = def->deadline == SAGA_NEVER ? DT_NOEND
		: values.started_at + def->deadline;
	if (!PG_ARGISNULL(2))
		values.input = saga_definition_check_input(def, PG_GETARG_JSONB_P(2));
	results = PG_ARGISNULL(3) ? NULL : PG_GETARG_JSONB_P(3);
	set_position(&values, results);
	values.results = split_results(def, results, values.item_index);

	texts = palloc0(Max(1, call->tmpl->nparams) * sizeof(char *));
	saga_template_bind(call->tmpl, &values, texts);
	if (call->tmpl->kind == SAGA_TEMPLATE_HTTP)
		PG_RETURN_JSONB_P(rendered_http(call, &values, texts));
	PG_RETURN_JSONB_P(rendered(call, texts));
}
