#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <dlfcn.h>
#include <cstring>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <atomic>
#undef cudaGetDeviceProperties
static long envl(const char*n,long d){const char*v=getenv(n);return v?atol(v):d;}
static std::mutex mu; static std::map<char*,size_t> dev, host; static size_t used=0;
static std::atomic<long> launches{0}, blas{0}, syncs{0}, h2d{0}, d2h{0};
static size_t total(){static size_t t=(size_t)(atof(getenv("FAKE_MEM_GB")?getenv("FAKE_MEM_GB"):"79.1")*(1ull<<30));return t;}
extern "C" {
long fake_launches(){return launches;} long fake_blas(){return blas;} long fake_syncs(){return syncs;} long fake_h2d(){return h2d;} long fake_d2h(){return d2h;}
size_t fake_used(){return used;}
static thread_local int cur=0;
// graphs: what runs while a stream is captured is counted, not recorded; waiting for the device then is an error, as it is there
static cudaStream_t capturing=0; static unsigned long long capture_id=0; static std::atomic<long> replays{0}, captured{0}; static long at_begin=0; static int last_error=0;
long fake_replays(){return replays;} long fake_captured(){return captured;}
static cudaError_t refuse(const char*f=__builtin_FUNCTION()){if(getenv("FAKE_VERBOSE"))fprintf(stderr,"fake_cuda: %s refused while capturing\n",f);last_error=900;return (cudaError_t)900;}
cudaError_t cudaGetLastError(){int e=last_error;last_error=0;return (cudaError_t)e;}
cudaError_t cudaPeekAtLastError(){return (cudaError_t)last_error;}
cudaError_t cudaStreamBeginCapture(cudaStream_t s,enum cudaStreamCaptureMode){if(capturing)return refuse();capturing=s;capture_id++;at_begin=launches;return cudaSuccess;}
cudaError_t cudaStreamEndCapture(cudaStream_t s,cudaGraph_t*g){if(capturing!=s)return refuse();capturing=0;captured+=launches-at_begin;*g=(cudaGraph_t)calloc(1,64);*(long*)*g=launches-at_begin;return cudaSuccess;}
cudaError_t cudaStreamIsCapturing(cudaStream_t t,enum cudaStreamCaptureStatus*s){*s=(cudaStreamCaptureStatus)(capturing&&t==capturing);return cudaSuccess;}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t t,enum cudaStreamCaptureStatus*s,unsigned long long*id,cudaGraph_t*g,const cudaGraphNode_t**n,const cudaGraphEdgeData**e,size_t*c){if(s)*s=(cudaStreamCaptureStatus)(capturing&&t==capturing);if(id)*id=capture_id;if(g)*g=0;if(n)*n=0;if(e)*e=0;if(c)*c=0;return cudaSuccess;}
cudaError_t cudaGraphGetNodes(cudaGraph_t g,cudaGraphNode_t*,size_t*n){*n=*(long*)g;return cudaSuccess;}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t*e,cudaGraph_t,unsigned long long){*e=(cudaGraphExec_t)malloc(8);return cudaSuccess;}
cudaError_t cudaGraphLaunch(cudaGraphExec_t,cudaStream_t){if(capturing)return refuse();launches++;replays++;return cudaSuccess;}
cudaError_t cudaStreamSynchronize(cudaStream_t t){if(capturing&&t==capturing)return refuse();syncs++;return cudaSuccess;}
cudaError_t cudaDeviceSynchronize(){if(capturing)return refuse();syncs++;return cudaSuccess;}
cudaError_t cudaEventSynchronize(cudaEvent_t){if(capturing)return refuse();syncs++;return cudaSuccess;}
// expandable segments (libcuda.so.1 calls these): memory is taken by cuMemCreate and given back by cuMemRelease
int fake_take(size_t n){std::lock_guard<std::mutex> g(mu);if(used+n>total()-(size_t)(0.8*(1<<30)))return 2;used+=n;return 0;}
void fake_give(size_t n){std::lock_guard<std::mutex> g(mu);used-=n;}
void fake_map(char*p,size_t n){std::lock_guard<std::mutex> g(mu);dev[p]=n;}
void fake_unmap(char*p,size_t n){std::lock_guard<std::mutex> g(mu);for(auto i=dev.lower_bound(p);i!=dev.end()&&i->first<p+n;)i=dev.erase(i);madvise(p,n,MADV_DONTNEED);}
cudaError_t cudaGetDeviceCount(int*n){*n=envl("FAKE_GPUS",1);return cudaSuccess;}
cudaError_t cudaGetDevice(int*d){*d=cur;return cudaSuccess;}
cudaError_t cudaSetDevice(int d){cur=d;return cudaSuccess;}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp*p,int){memset(p,0,sizeof *p);
 int cc=envl("FAKE_CC",90); strcpy(p->name,getenv("FAKE_NAME")?getenv("FAKE_NAME"):"NVIDIA H100 80GB HBM3"); p->major=cc/10;p->minor=cc%10;
 p->totalGlobalMem=total();p->multiProcessorCount=envl("FAKE_SM",132);p->warpSize=32;p->maxThreadsPerMultiProcessor=cc>=90||cc==80?2048:cc==75?1024:1536;
 p->maxThreadsPerBlock=1024;p->sharedMemPerBlock=49152;p->sharedMemPerBlockOptin=cc>=90&&cc<110?232448:cc==80?166912:cc==75?65536:101376;
 p->sharedMemPerMultiprocessor=p->sharedMemPerBlockOptin+1024;p->regsPerBlock=65536;p->regsPerMultiprocessor=65536;p->l2CacheSize=50<<20;
 for(int i=0;i<3;i++){p->maxThreadsDim[i]=i==2?64:1024;p->maxGridSize[i]=i?65535:2147483647;} p->concurrentKernels=1;p->unifiedAddressing=1;p->managedMemory=1;p->memoryBusWidth=5120;p->maxBlocksPerMultiProcessor=32;p->cooperativeLaunch=1;
 return cudaSuccess;}
cudaError_t cudaDeviceGetAttribute(int*v,enum cudaDeviceAttr a,int d){cudaDeviceProp p;cudaGetDeviceProperties(&p,d);*v=0;
 switch((int)a){case 1:case 2:case 3:*v=1024;break;case 4:*v=64;break;case 5:*v=2147483647;break;case 6:case 7:*v=65535;break;case 8:*v=49152;break;case 10:*v=32;break;case 12:*v=65536;break;case 13:*v=1755000;break;case 16:*v=p.multiProcessorCount;break;case 36:*v=2619000;break;case 37:*v=5120;break;case 38:*v=50<<20;break;case 39:*v=p.maxThreadsPerMultiProcessor;break;case 75:*v=p.major;break;case 76:*v=p.minor;break;case 81:*v=p.sharedMemPerMultiprocessor;break;case 82:*v=65536;break;case 97:*v=p.sharedMemPerBlockOptin;break;case 106:*v=32;break;default:*v=0;} return cudaSuccess;}
cudaError_t cudaMalloc(void**p,size_t n){std::lock_guard<std::mutex> g(mu); size_t r=(n+(2<<20)-1)/(2<<20)*(2<<20); if(used+r>total()-(size_t)(0.8*(1<<30))){*p=0;return cudaErrorMemoryAllocation;}
 void*q=mmap(0,r+(2<<20),PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE,-1,0); if(q==MAP_FAILED){*p=0;return cudaErrorMemoryAllocation;}
 dev[(char*)q]=r; used+=r; *p=q; return cudaSuccess;}
cudaError_t cudaFree(void*p){if(!p)return cudaSuccess;std::lock_guard<std::mutex> g(mu);auto i=dev.find((char*)p);if(i!=dev.end()){used-=i->second;munmap(p,i->second+(2<<20));dev.erase(i);}return cudaSuccess;}
cudaError_t cudaMemGetInfo(size_t*f,size_t*t){*t=total();*f=total()-used-(size_t)(0.8*(1<<30));return cudaSuccess;}
cudaError_t cudaHostAlloc(void**p,size_t n,unsigned){if(posix_memalign(p,4096,n?n:1))return cudaErrorMemoryAllocation;std::lock_guard<std::mutex> g(mu);host[(char*)*p]=n;return cudaSuccess;}
cudaError_t cudaFreeHost(void*p){std::lock_guard<std::mutex> g(mu);host.erase((char*)p);free(p);return cudaSuccess;}
static bool in(std::map<char*,size_t>&m,const void*q){auto i=m.upper_bound((char*)q);if(i==m.begin())return false;--i;return (char*)q<i->first+i->second;}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes*a,const void*q){std::lock_guard<std::mutex> g(mu);memset(a,0,sizeof *a);
 if(in(dev,q)){a->type=cudaMemoryTypeDevice;a->devicePointer=(void*)q;}else if(in(host,q)){a->type=cudaMemoryTypeHost;a->hostPointer=(void*)q;a->devicePointer=(void*)q;}else a->type=cudaMemoryTypeUnregistered;return cudaSuccess;}
static void cp(void*d,const void*s,size_t n,int k){if(k==1)h2d++; if(k==2)d2h++; if(k==3&&n>(1<<16))return; if(n>(64u<<20)&&k==1)return; memmove(d,s,n);}
cudaError_t cudaMemcpy(void*d,const void*s,size_t n,enum cudaMemcpyKind k){if(capturing)return refuse();cp(d,s,n,k);return cudaSuccess;}
cudaError_t cudaMemcpyAsync(void*d,const void*s,size_t n,enum cudaMemcpyKind k,cudaStream_t){cp(d,s,n,k);return cudaSuccess;}
cudaError_t cudaMemset(void*d,int v,size_t n){if(n<=1<<16)memset(d,v,n);return cudaSuccess;}
cudaError_t cudaMemsetAsync(void*d,int v,size_t n,cudaStream_t){launches++;if(n<=1<<16)memset(d,v,n);return cudaSuccess;}
cudaError_t cudaEventCreate(cudaEvent_t*e){*e=(cudaEvent_t)malloc(8);return cudaSuccess;}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t*e,unsigned){*e=(cudaEvent_t)malloc(8);return cudaSuccess;}
cudaError_t cudaEventElapsedTime(float*f,cudaEvent_t,cudaEvent_t){*f=1.f;return cudaSuccess;}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t*s,unsigned){*s=(cudaStream_t)malloc(8);return cudaSuccess;}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t*s,unsigned,int){*s=(cudaStream_t)malloc(8);return cudaSuccess;}
cudaError_t cudaDeviceGetStreamPriorityRange(int*a,int*b){if(a)*a=0;if(b)*b=-5;return cudaSuccess;}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes*a,const void*){memset(a,0,sizeof *a);a->maxThreadsPerBlock=1024;a->numRegs=32;a->binaryVersion=envl("FAKE_CC",90);a->ptxVersion=90;a->maxDynamicSharedSizeBytes=49152;return cudaSuccess;}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int*n,const void*,int,size_t,unsigned){*n=2;return cudaSuccess;}
const char* cudaGetErrorString(cudaError_t e){return e==2?"out of memory":e==900?"operation not permitted when stream is capturing":"fake error";}
const char* cudaGetErrorName(cudaError_t e){return e==2?"cudaErrorMemoryAllocation":"fake";}
cudaError_t cudaDriverGetVersion(int*v){*v=13000;return cudaSuccess;}
cudaError_t cudaRuntimeGetVersion(int*v){*v=13000;return cudaSuccess;}
cudaError_t cudaGetSymbolAddress(void**p,const void*){*p=calloc(1,1<<16);return cudaSuccess;}
cudaError_t cudaDeviceGetPCIBusId(char*s,int n,int){snprintf(s,n,"0000:00:00.0");return cudaSuccess;}
cudaError_t cudaDeviceCanAccessPeer(int*v,int,int){*v=1;return cudaSuccess;}
cudaError_t cudaGetDriverEntryPointByVersion(const char*n,void**f,unsigned,unsigned long long,enum cudaDriverEntryPointQueryResult*r){static void*h=dlopen("libcuda.so.1",RTLD_LAZY);*f=h?dlsym(h,n):0; if(r)*r=*f?cudaDriverEntryPointSuccess:cudaDriverEntryPointSymbolNotFound;return cudaSuccess;}
void** __cudaRegisterFatBinary(void*){static void*x;return &x;}
void __cudaRegisterFatBinaryEnd(void**){} void __cudaUnregisterFatBinary(void**){}
void __cudaRegisterFunction(void**,const char*,char*,const char*,int,uint3*,uint3*,dim3*,dim3*,int*){}
void __cudaRegisterVar(void**,char*,char*,const char*,int,size_t,int,int){}
cudaError_t __cudaGetKernel(cudaKernel_t*k,const void*f){*k=(cudaKernel_t)f;return cudaSuccess;}
unsigned __cudaPushCallConfiguration(dim3,dim3,size_t,struct CUstream_st*){return 0;}
cudaError_t __cudaPopCallConfiguration(dim3*g,dim3*b,size_t*s,void*st){if(s)*s=0;if(st)*(void**)st=0;return cudaSuccess;}
cudaError_t __cudaLaunchKernel(cudaKernel_t,dim3,dim3,void**,size_t,cudaStream_t){launches++;return cudaSuccess;}
cudaError_t cudaLaunchKernel(const void*,dim3,dim3,void**,size_t,cudaStream_t){launches++;return cudaSuccess;}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*,const void*,void**){launches++;return cudaSuccess;}
int cublasCreate_v2(void**h){*h=malloc(8);return 0;}
int cublasGetMathMode(void*,int*m){*m=0;return 0;} int cublasGetPointerMode_v2(void*,int*m){*m=0;return 0;}
size_t cublasLtGetVersion(){return 130000;}
int cublasLtMatmulDescCreate(void**d,int,int){*d=calloc(1,64);return 0;}
int cublasLtMatmulPreferenceCreate(void**d){*d=calloc(1,64);return 0;}
int cublasLtMatrixLayoutCreate(void**d,int,unsigned long,unsigned long,long){*d=calloc(1,64);return 0;}
int cublasLtMatmulAlgoGetHeuristic(void*,void*,void*,void*,void*,void*,void*,int,void*r,int*n){memset(r,0,96);*n=1;return 0;}
int cublasLtMatmul(){launches++;blas++;return 0;} int cublasGemmEx(){launches++;blas++;return 0;} int cublasGemmStridedBatchedEx(){launches++;blas++;return 0;} int cublasSgemm_v2(){launches++;blas++;return 0;} int cublasSgemmStridedBatched(){launches++;blas++;return 0;} int cublasSgemmEx(){launches++;blas++;return 0;}
}
