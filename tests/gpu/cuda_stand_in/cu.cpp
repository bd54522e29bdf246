#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <sys/mman.h>
#include <atomic>
static long envl(const char*n,long d){const char*v=getenv(n);return v?atol(v):d;}
extern "C" {
static std::atomic<long> n{0}; long fake_triton_launches(){return n;}
int cuInit(unsigned){return 0;} int cuDriverGetVersion(int*v){*v=13000;return 0;}
int cuDeviceGet(int*d,int i){*d=i;return 0;} int cuDeviceGetCount(int*c){*c=envl("FAKE_GPUS",1);return 0;}
int cuDeviceGetAttribute(int*v,int a,int){int cc=envl("FAKE_CC",90);int opt=cc>=90&&cc<110?232448:cc==80?166912:cc==75?65536:101376;
 switch(a){case 1:case 2:case 3:*v=1024;break;case 4:*v=64;break;case 5:*v=2147483647;break;case 6:case 7:*v=65535;break;case 8:*v=49152;break;case 10:*v=32;break;case 12:*v=65536;break;case 13:*v=1755000;break;case 16:*v=envl("FAKE_SM",132);break;case 36:*v=2619000;break;case 37:*v=5120;break;case 38:*v=50<<20;break;case 39:*v=2048;break;case 75:*v=cc/10;break;case 76:*v=cc%10;break;case 81:*v=opt+1024;break;case 82:*v=65536;break;case 97:*v=opt;break;case 106:*v=32;break;default:*v=0;}return 0;}
int cuDevicePrimaryCtxGetState(int,unsigned*f,int*a){*f=0;*a=1;return 0;}
int cuDevicePrimaryCtxRetain(void**c,int){static int x;*c=&x;return 0;} int cuCtxGetCurrent(void**c){static int x;*c=&x;return 0;} int cuCtxSetCurrent(void*){return 0;}
int cuCtxPushCurrent_v2(void*){return 0;} int cuCtxPopCurrent_v2(void**){return 0;} int cuCtxGetDevice(int*d){*d=0;return 0;}
int cuCtxGetLimit(size_t*v,int){*v=1<<20;return 0;} int cuCtxSetLimit(int,size_t){return 0;}
int cuModuleLoadData(void**m,const void*){*m=malloc(8);return 0;} int cuModuleLoad(void**m,const char*){*m=malloc(8);return 0;} int cuModuleLoadDataEx(void**m,const void*,unsigned,void*,void*){*m=malloc(8);return 0;} int cuModuleUnload(void*){return 0;}
int cuModuleGetFunction(void**f,void*,const char*){*f=malloc(8);return 0;}
int cuFuncGetAttribute(int*v,int a,void*){*v=a==0?1024:a==4?64:0;return 0;} int cuFuncSetAttribute(void*,int,int){return 0;} int cuFuncSetCacheConfig(void*,int){return 0;}
int cuGetErrorString(int,const char**s){*s="fake";return 0;} int cuGetErrorName(int,const char**s){*s="fake";return 0;}
int cuLaunchKernelEx(const void*,void*,void**,void**){n++;return 0;} int cuLaunchKernel(){n++;return 0;} int cuLaunchCooperativeKernel(){n++;return 0;}
int cuPointerGetAttribute(void*d,int,unsigned long long p){*(unsigned long long*)d=p;return 0;}
int cuOccupancyMaxActiveClusters(int*v,void*,void*){*v=1;return 0;} int cuTensorMapEncodeTiled(){return 0;} int cuTensorMapEncodeIm2col(){return 0;}
int cuStreamGetCaptureInfo_v2(void*,int*s){*s=0;return 0;} int cuStreamSynchronize(void*){return 0;} int cuMemGetAddressRange_v2(){return 0;} int cuDeviceGetName(char*s,int n,int){strncpy(s,"fake",n);return 0;} int cuDeviceTotalMem_v2(size_t*t,int){*t=80ull<<30;return 0;}
// expandable segments: addresses are reserved once, memory comes and goes behind them
static void* rt(const char*n){return dlsym(RTLD_DEFAULT,n);}
int cuMemGetAllocationGranularity(size_t*g,const void*,int){*g=2<<20;return 0;}
int cuMemAddressReserve(unsigned long long*p,size_t n,size_t,unsigned long long,unsigned long long){void*q=mmap(0,n+(2<<20),PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE,-1,0);if(q==MAP_FAILED)return 2;*p=((unsigned long long)q+(2<<20)-1)/(2<<20)*(2<<20);return 0;}
int cuMemAddressFree(unsigned long long p,size_t n){return 0;}
int cuMemCreate(unsigned long long*h,size_t n,const void*,unsigned long long){auto take=(int(*)(size_t))rt("fake_take");int e=take(n);if(!e)*h=n;return e;}
int cuMemRelease(unsigned long long h){((void(*)(size_t))rt("fake_give"))(h);return 0;}
int cuMemMap(unsigned long long p,size_t n,size_t,unsigned long long,unsigned long long){((void(*)(char*,size_t))rt("fake_map"))((char*)p,n);return 0;}
int cuMemUnmap(unsigned long long p,size_t n){((void(*)(char*,size_t))rt("fake_unmap"))((char*)p,n);return 0;}
int cuMemSetAccess(){return 0;} int cuMemExportToShareableHandle(){return 1;} int cuMemImportFromShareableHandle(){return 1;} int cuMemsetD32Async(){return 0;} int cuStreamWriteValue32(){return 0;} int cuStreamWaitValue32(){return 0;} int cuStreamBatchMemOp(){return 0;}
int cuMemGetAddressRange(){return 1;} int cuMulticastAddDevice(){return 1;} int cuMulticastBindMem(){return 1;} int cuMulticastCreate(){return 1;} int cuMulticastUnbind(){return 1;} int cuMemGetAllocationPropertiesFromHandle(){return 1;} int cuMemRetainAllocationHandle(){return 1;}
}
