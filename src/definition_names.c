/*
 * definition_names.c
 *		What the names in a definition's templates stand for.
 *
 * Called by definition.c while it compiles; system names are also asked for
 * by define_body.c, as steps must not bear them.  A name that means nothing,
 * or nothing there, becomes a fault.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "compile.h"
#include "types.h"

static const struct
{
	const char *name;
	SagaSystemName id;
	Oid			type;
}			system_names[] =
{
	{"saga_id", SAGA_SYS_SAGA_ID, UUIDOID},
	{"saga_name", SAGA_SYS_SAGA_NAME, TEXTOID},
	{"saga_key", SAGA_SYS_SAGA_KEY, TEXTOID},
	{"step_name", SAGA_SYS_STEP_NAME, TEXTOID},
	{"attempt", SAGA_SYS_ATTEMPT, INT4OID},
	{"idempotency_key", SAGA_SYS_IDEMPOTENCY_KEY, TEXTOID},
	{"action_key", SAGA_SYS_ACTION_KEY, TEXTOID},
	{"correlation", SAGA_SYS_CORRELATION, TEXTOID},
	{"started_by", SAGA_SYS_STARTED_BY, TEXTOID},
	{"started_at", SAGA_SYS_STARTED_AT, TIMESTAMPTZOID},
	{"deadline", SAGA_SYS_DEADLINE, TIMESTAMPTZOID},
	{"result", SAGA_SYS_RESULT, InvalidOid},
	{"cause", SAGA_SYS_CAUSE, TEXTOID},
};

/* Names that mean something in API.md, but not in a plain step. */
static const char *const later_names[] =
{"callback_token", "item", "item_index", "iteration"};

int
saga_system_name(const char *name)
{
	for (int i = 0; i < (int) lengthof(system_names); i++)
		if (strcmp(system_names[i].name, name) == 0)
			return i;
	for (int i = 0; i < (int) lengthof(later_names); i++)
		if (strcmp(later_names[i], name) == 0)
			return lengthof(system_names) + i;
	return -1;
}

/*
 * What to announce to the database that runs the statement: a participant
 * knows only the types every server has under the same OID.
 */
static Oid
bind_type(const SagaPlace *place, Oid type)
{
	if (!place->remote || !OidIsValid(type))
		return type;
	type = getBaseType(type);
	return type < FirstGenbkiObjectId ? type : InvalidOid;
}

static void
set_type(const SagaPlace *place, SagaParam *param, const SagaType *type)
{
	param->type_info = type;
	param->type = type ? type->type : InvalidOid;
	param->bind_type = bind_type(place, param->type);
}

static bool
comes_before(const SagaPlace *place, int node)
{
	SagaCompile *c = place->c;

	if (place->node < 0 || c->cyclic || (place->undo && node == place->node))
		return true;
	return (c->before[place->node][node / 64] >> (node % 64)) & 1;
}

/* A declared type is that of one row, not of an array of rows. */
static void
set_result_type(const SagaPlace *place, SagaParam *param, int node)
{
	SagaCall   *action = place->c->def->action[node];
	const SagaType *type = action ? action->returns_type : NULL;

	if (type != NULL && action->shape == SAGA_RESULT_ROWS)
		type = param->npath > 0
			? saga_type_at(type, param->npath - 1, param->path + 1) : NULL;
	else if (type != NULL)
		type = saga_type_at(type, param->npath, param->path);
	set_type(place, param, type);
}

/*
 * The resolve_...() functions return NULL, or what is wrong with the name, and
 * then may set place->hint.
 */
static char *
resolve_step(SagaPlace *place, int node, int nparts, char **parts,
			 SagaParam *param)
{
	const SagaNode *step = &place->c->def->graph->nodes[node];
	SagaCall   *action = place->c->def->action[node];

	if (step->kind == SAGA_NODE_UNDO)
	{
		place->hint = "Use the result of the step whose effect it undoes.";
		return psprintf("step \"%s\" is an undo_step and has no result",
						step->name);
	}
	if (node == place->node && !place->undo)
	{
		place->hint = psprintf("Results are known to later steps and to the step's own compensation; an input field of this name is :input.%s.",
							   step->name);
		return pstrdup("an action cannot refer to its own result");
	}
	if (!comes_before(place, node))
	{
		place->hint = "Put this step behind it, or name it in \"after\".";
		return psprintf("step \"%s\" does not come before this one", step->name);
	}

	param->index = node;
	if (nparts == 1 && strcmp(parts[0], "failed") == 0)
	{
		param->scope = SAGA_PARAM_STEP_FAILED;
		param->type = param->bind_type = BOOLOID;
		return NULL;
	}
	if (action && action->shape == SAGA_RESULT_NONE)
	{
		place->hint = "Leave out result => 'none' there.";
		return psprintf("step \"%s\" keeps no result", step->name);
	}
	param->scope = SAGA_PARAM_STEP;
	param->npath = nparts;
	param->path = parts;
	set_result_type(place, param, node);
	return NULL;
}

static char *
resolve_system(SagaPlace *place, int id, int nparts, char **parts,
			   SagaParam *param)
{
	place->hint = "An input field of this name can be written as :input.name.";
	if (id >= (int) lengthof(system_names))
		return psprintf("name \"%s\" means nothing in this place", parts[0]);
	param->scope = SAGA_PARAM_SYSTEM;
	param->index = system_names[id].id;
	if (param->index == SAGA_SYS_RESULT)
	{
		place->hint = "Write the name of the step whose result is meant.";
		if (!place->undo)
			return pstrdup("\"result\" means something in a compensation only");
		if (place->c->def->graph->nodes[place->node].kind == SAGA_NODE_UNDO)
			return pstrdup("an undo_step has no result");
		param->npath = nparts - 1;
		param->path = parts + 1;
		set_result_type(place, param, place->node);
		return NULL;
	}
	if (nparts > 1)
		return psprintf("system name \"%s\" has no parts", parts[0]);
	param->type = param->bind_type = system_names[id].type;
	return NULL;
}

/* Names differ in case from what they were meant to be more often than not. */
static const char *
similar_name(const SagaDefinition *def, const char *name)
{
	for (int i = 0; i < def->ninput; i++)
		if (pg_strcasecmp(def->input[i].name, name) == 0)
			return psprintf("The input has a field \"%s\": unquoted names are folded to lower case.",
							def->input[i].name);
	for (int i = 0; i < def->graph->nnodes; i++)
		if (pg_strcasecmp(def->graph->nodes[i].name, name) == 0)
			return psprintf("There is a step \"%s\".", def->graph->nodes[i].name);
	return NULL;
}

static char *
resolve_input(SagaPlace *place, int nparts, char **parts, SagaParam *param)
{
	const SagaDefinition *def = place->c->def;

	param->scope = SAGA_PARAM_INPUT;
	param->npath = nparts;
	param->path = parts;
	if (nparts == 0)
	{
		param->type = param->bind_type = JSONBOID;
		return NULL;
	}
	if (!def->typed_input)
		return NULL;
	for (int i = 0; i < def->ninput; i++)
		if (strcmp(def->input[i].name, parts[0]) == 0)
		{
			set_type(place, param, saga_type_at(def->input[i].type_info,
												nparts - 1, parts + 1));
			return NULL;
		}
	place->hint = similar_name(def, parts[0]);
	if (place->hint == NULL)
		place->hint = "Names are looked up among system names, steps, then the fields of the input.";
	return psprintf("name \"%s\" is no step, no field of the input and no system name",
					parts[0]);
}

static char *
resolve_parts(SagaPlace *place, int nparts, char **parts, SagaParam *param)
{
	const SagaDefinition *def = place->c->def;
	int			found;

	if (strcmp(parts[0], "input") == 0)
		return resolve_input(place, nparts - 1, parts + 1, param);
	if (strcmp(parts[0], "steps") == 0)
	{
		found = nparts > 1 ? saga_definition_node(def, parts[1]) : SAGA_NO_NODE;
		if (found != SAGA_NO_NODE)
			return resolve_step(place, found, nparts - 2, parts + 2, param);
		if (nparts == 1)
			return pstrdup("\"steps\" must be followed by the name of a step");
		place->hint = similar_name(def, parts[1]);
		return psprintf("step \"%s\" does not exist", parts[1]);
	}
	if ((found = saga_system_name(parts[0])) >= 0)
		return resolve_system(place, found, nparts, parts, param);
	if ((found = saga_definition_node(def, parts[0])) != SAGA_NO_NODE)
		return resolve_step(place, found, nparts - 1, parts + 1, param);
	return resolve_input(place, nparts, parts, param);
}

static const char *
place_step(const SagaPlace *place)
{
	return place->node >= 0
		? place->c->def->graph->nodes[place->node].name : NULL;
}

/* A fault rather than an error: so that all of them are found in one go. */
static char *
resolve_name(SagaNameScope *scope, int nparts, char **parts, SagaParam *param)
{
	SagaPlace  *place = (SagaPlace *) scope;
	char	   *problem;

	place->hint = NULL;
	problem = resolve_parts(place, nparts, parts, param);
	if (problem != NULL)
		saga_fault(place->c->faults, place_step(place), place->hint,
				   "%s: %s: %s", place->part, param->name, problem);
	return NULL;
}

SagaTemplate *
saga_compile_template(SagaPlace *place, const char *text)
{
	SagaTemplate *tmpl;
	char	   *problem;

	place->scope.resolve = resolve_name;
	tmpl = place->http ?
		saga_http_template_parse(text, &place->scope, &problem) :
		saga_template_parse(text, &place->scope, &problem);
	if (tmpl == NULL)
		saga_fault(place->c->faults, place_step(place), place->http ?
				   "Write METHOD /path?query {json body}, as in POST /emails {\"to\": :email}; parameters are :name, and :{name} in JSON strings." :
				   "Write parameters as :name.",
				   "%s: %s", place->part, problem);
	return tmpl;
}
