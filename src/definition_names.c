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
	{"item", SAGA_SYS_ITEM, InvalidOid},
	{"item_index", SAGA_SYS_ITEM_INDEX, INT4OID},
	{"iteration", SAGA_SYS_ITERATION, INT4OID},
	{"callback_token", SAGA_SYS_CALLBACK_TOKEN, TEXTOID},
};

int
saga_system_name(const char *name)
{
	for (int i = 0; i < (int) lengthof(system_names); i++)
		if (strcmp(system_names[i].name, name) == 0)
			return i;
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

bool
saga_compile_comes_before(const SagaCompile *c, int before, int node)
{
	saga_compile_meet(c, &node, &before);
	return (c->before[node][before / 64] >> (before % 64)) & 1;
}

/* The node whose calls give a node's result: of a for_each, its body. */
static int
caller(const SagaCompile *c, int node)
{
	const SagaGraph *graph = c->def->graph;

	return graph->nodes[node].kind == SAGA_NODE_EACH
		? graph->scopes[graph->nodes[node].body].first : node;
}

/*
 * A declared type is that of one row of one element: results of result =>
 * 'rows' and of for_each are arrays of them.
 */
static void
set_result_type(const SagaPlace *place, SagaParam *param, int node)
{
	const SagaCompile *c = place->c;
	SagaCall   *action = c->def->action[caller(c, node)];
	const SagaType *type = action ? action->returns_type : NULL;
	int			arrays = (caller(c, node) != node) +
		(action != NULL && action->shape == SAGA_RESULT_ROWS);

	if (type != NULL)
		type = param->npath >= arrays
			? saga_type_at(type, param->npath - arrays, param->path + arrays)
			: NULL;
	set_type(place, param, type);
}

/* Why a step has no result, or NULL. */
static const char *
no_result(const SagaPlace *place, int node)
{
	const SagaCompile *c = place->c;
	SagaCall   *action = c->def->action[caller(c, node)];

	switch (c->def->graph->nodes[node].kind)
	{
		case SAGA_NODE_STEP:
		case SAGA_NODE_EACH:
			return action != NULL && action->shape == SAGA_RESULT_NONE
				? "keeps no result" : NULL;
		case SAGA_NODE_SIGNAL:
			return NULL;
		case SAGA_NODE_UNDO:
			return "is an undo_step and has no result";
		case SAGA_NODE_LOOP:
			return "is a loop and has no result";
		case SAGA_NODE_BRANCH:
			return "is a branch and has no result";
		case SAGA_NODE_SLEEP:
		case SAGA_NODE_SAVEPOINT:
			break;
	}
	return "has no result";
}

/* Is a node in the body of another, at any depth? */
static bool
is_inside(const SagaCompile *c, int node, int owner)
{
	return node != owner &&
		saga_compile_lift(c, node, c->nodes[owner].scope) == owner;
}

/* NULL, or why a step cannot be named there. */
static char *
check_order(SagaPlace *place, int node)
{
	SagaCompile *c = place->c;
	const char *name = c->def->graph->nodes[node].name;
	int			here = place->node;
	int			there = node;

	if (here < 0 || c->cyclic)
		return NULL;
	if (place->own_body && is_inside(c, node, here))
	{
		place->body_seen = true;
		return NULL;
	}
	if (node == here)
	{
		place->hint = psprintf("Results are known to later steps and to the step's own compensation; an input field of this name is :input.%s.",
							   name);
		return pstrdup("an action cannot refer to its own result");
	}
	if (is_inside(c, here, node))
	{
		place->hint = "The result of a loop is there when all of it is over.";
		return psprintf("this step is a part of \"%s\"", name);
	}
	saga_compile_meet(c, &here, &there);
	if (saga_compile_exclusive(c, here, there))
	{
		place->hint = "Only one case of a branch is taken.";
		return psprintf("step \"%s\" is in another case", name);
	}
	if (here == there || !saga_compile_comes_before(c, there, here))
	{
		place->hint = "Put this step behind it, or name it in \"after\".";
		return psprintf("step \"%s\" does not come before this one", name);
	}
	return NULL;
}

/*
 * The resolve_...() functions return NULL, or what is wrong with the name, and
 * then may set place->hint.
 */
static char *
resolve_step(SagaPlace *place, int node, int nparts, char **parts,
			 SagaParam *param)
{
	SagaCompile *c = place->c;
	const char *name = c->def->graph->nodes[node].name;
	const char *none;
	char	   *problem;

	/* in the body of a for_each, its name means the element's own call */
	if (place->node >= 0 && c->nodes[place->node].element &&
		is_inside(c, place->node, node))
		node = place->node;
	if (!(place->undo && node == place->node) &&
		(problem = check_order(place, node)) != NULL)
		return problem;

	param->index = node;
	if (nparts == 1 && strcmp(parts[0], "failed") == 0 &&
		c->def->graph->nodes[node].kind != SAGA_NODE_UNDO)
	{
		param->scope = SAGA_PARAM_STEP_FAILED;
		param->type = param->bind_type = BOOLOID;
		return NULL;
	}
	none = no_result(place, node);
	if (none != NULL)
	{
		place->hint = c->def->graph->nodes[node].kind == SAGA_NODE_STEP
			? "Leave out result => 'none' there."
			: "Use the result of a step that does something.";
		return psprintf("step \"%s\" %s", name, none);
	}
	param->scope = SAGA_PARAM_STEP;
	param->npath = nparts;
	param->path = parts;
	set_result_type(place, param, node);
	return NULL;
}

static char *
resolve_result(SagaPlace *place, SagaParam *param)
{
	if (!place->undo && !place->own_result)
	{
		place->hint = "Write the name of the step whose result is meant.";
		return pstrdup("\"result\" means something in a compensation and in decline_if only");
	}
	if (place->c->def->graph->nodes[place->node].kind == SAGA_NODE_UNDO)
	{
		place->hint = "Write the name of the step whose result is meant.";
		return pstrdup("an undo_step has no result");
	}
	set_result_type(place, param, place->node);
	return NULL;
}

/* Names that mean something in some places only: NULL, or why not here. */
static char *
check_place(SagaPlace *place, SagaSystemName id, const char *name)
{
	const SagaCompile *c = place->c;
	bool		loop = place->own_body;

	if ((id == SAGA_SYS_ITEM || id == SAGA_SYS_ITEM_INDEX) &&
		(place->node < 0 || !c->nodes[place->node].element))
	{
		place->hint = "It is the element that a step with for_each is at, and known to its action and compensation.";
		return psprintf("\"%s\" means something in a step with for_each only", name);
	}
	for (int scope = place->node < 0 ? 0 : c->nodes[place->node].scope; scope > 0;)
	{
		int			owner = c->def->graph->scopes[scope].owner;

		loop |= c->def->graph->nodes[owner].kind == SAGA_NODE_LOOP;
		scope = c->nodes[owner].scope;
	}
	if (id == SAGA_SYS_ITERATION && !loop)
	{
		place->hint = "It is the number of the iteration, from 0, in the steps of a loop and in its while.";
		return psprintf("\"%s\" means something in a loop only", name);
	}
	if (id == SAGA_SYS_CALLBACK_TOKEN && !place->token)
	{
		place->hint = "Say callback => true if the step is answered later by saga.complete_step().";
		return psprintf("\"%s\" means something in the action of a step with callback only", name);
	}
	return NULL;
}

static char *
resolve_system(SagaPlace *place, int id, int nparts, char **parts,
			   SagaParam *param)
{
	const SagaType *item;
	char	   *problem;

	param->scope = SAGA_PARAM_SYSTEM;
	param->index = system_names[id].id;
	problem = check_place(place, param->index, parts[0]);
	if (problem != NULL)
		return problem;
	if (param->index == SAGA_SYS_RESULT || param->index == SAGA_SYS_ITEM)
	{
		param->npath = nparts - 1;
		param->path = parts + 1;
		if (param->index == SAGA_SYS_RESULT)
			return resolve_result(place, param);
		item = place->c->nodes[place->node].item_type;
		set_type(place, param, item == NULL ? NULL
				 : saga_type_at(item, param->npath, param->path));
		return NULL;
	}
	if (nparts > 1)
	{
		place->hint = "An input field of this name can be written as :input.name.";
		return psprintf("system name \"%s\" has no parts", parts[0]);
	}
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
